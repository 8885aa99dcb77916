"""Ten thousand batches with computations in flight: how many are corrupt, how many slots back.

Once with the loader's lease, and once with a lease that ends when the jax arrays die, which
is what it must not be: a computation may still be reading then.
"""

from __future__ import annotations

import gc
import time
import weakref
from collections import deque
from typing import Any

import anyio
import anyio.lowlevel
import jax
import jax.numpy as jnp
import numpy as np

from aioloader import DataGroup, Loader, run, wait_ready
from aioloader._memory.arena import Arena, ArenaSlot

BATCHES, DEPTH, WIDTH = 10_000, 4, 1 << 15
ARRAYS = {"x": ((WIDTH,), "uint32", "uint32"), "y": ((WIDTH,), "bfloat16", "bfloat16")}
SIDE = 300


def load(item: int, arrays: Any, seed: int | None) -> None:
    arrays["x"][...] = item
    arrays["y"][...] = item % 256


@jax.jit
def digest(x: Any, y: Any) -> Any:
    """Compute for about a millisecond, and only then read the batch."""
    spent = jnp.full((SIDE, SIDE), 1 / SIDE)
    for _ in range(4):
        spent = spent @ spent  # in XLA's own threads, while Python goes on
    # Where to read depends on the outcome, so that the compiler cannot read earlier.
    at = (spent[0, 0] == 12345).astype(jnp.int32)
    x = jax.lax.dynamic_slice(x, (0, at), (1, WIDTH - 1))
    wide = jax.lax.dynamic_slice(y, (0, at), (1, WIDTH - 1)).astype(jnp.float32)
    return x.sum(dtype=jnp.uint32), x.max(), x.min(), wide.max(), wide.min()


def expected(item: int) -> tuple[float, ...]:
    wide = float(np.float32(jnp.bfloat16(item % 256)))
    return (float((item * (WIDTH - 1)) & 0xFFFFFFFF), item, item, wide, wide)


def end_lease_with_arrays() -> None:
    """Break the arena: a slot returns when the arrays of its batch are gone."""
    plain_take = Loader._deliver

    def lend(self: Arena, index: int, layout_key: int, rows: int) -> ArenaSlot:
        offset = index * self._slot_bytes
        lease = self._lease_type.from_buffer(self._segment.buffer, offset)
        slot = ArenaSlot(lease, index, offset, layout_key, self._laid_out(layout_key, rows), rows)
        _lent.append((self, index))
        return slot

    def deliver(self: Any, loaded: Any) -> Any:
        arena, index = _lent.popleft()
        left = [2]

        def gone() -> None:
            left[0] -= 1
            if left[0] == 0:
                arena._ended(index)

        for array in loaded.placed.arrays.values():
            weakref.finalize(array, gone).atexit = False
        return plain_take(self, loaded)

    Arena._lend = lend  # type: ignore[method-assign]
    Loader._deliver = deliver  # type: ignore[method-assign]


_lent: deque[tuple[Arena, int]] = deque()


async def corrupt(batches: int) -> tuple[int, int]:
    group = DataGroup(1, range(10**9), loader_arrays=ARRAYS)
    flying: deque[tuple[int, Any]] = deque()
    wrong = 0

    async def land() -> int:
        item, results = flying.popleft()
        await wait_ready(results)
        return int(tuple(float(r) for r in results) != expected(item))

    options: dict[str, Any] = {"num_workers": 2, "worker_nice": 0, "end_at": ("batch", batches)}
    async with Loader(load, group, depth=DEPTH, **options) as loader:
        async for batch in loader:
            x, y = batch.arrays["x"], batch.arrays["y"]
            flying.append((batch.indices[0], digest(x, y)))
            if batch.batch_num % 4 == 1:
                x.delete()
            elif batch.batch_num % 4 == 2:
                wrong += int(np.asarray(x)[0, -1] != batch.indices[0])
            elif batch.batch_num % 4 == 3:
                batch.release()
            del batch, x, y
            while len(flying) > 6:
                wrong += await land()
        while flying:
            wrong += await land()
        arena = loader._running._arena  # type: ignore[union-attr]
        with anyio.move_on_after(5):
            while arena.on_loan:
                gc.collect()
                await anyio.sleep(0.01)
        return wrong, DEPTH - arena.on_loan


def main() -> None:
    for name in ("the loader's lease", "a lease that ends with the jax arrays"):
        started = time.perf_counter()
        wrong, back = run(corrupt(BATCHES))
        print(
            f"{name}: {BATCHES} batches, {wrong} corrupt, {back} of {DEPTH} slots back "
            f"({BATCHES / (time.perf_counter() - started):.0f} batches/s)"
        )
        end_lease_with_arrays()


if __name__ == "__main__":
    main()
