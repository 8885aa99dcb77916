"""Promise 5: a slot is written again only when nothing can read it any more."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from support import both_loops, run_on, simple_group, simple_load, until

from aioloader import DataGroup, Loader
from aioloader._memory import arena as arena_module

if TYPE_CHECKING:
    import pytest

WIDTH = 1 << 14
ARRAYS = {"x": ((WIDTH,), "uint32", "uint32"), "y": ((WIDTH,), "bfloat16", "bfloat16")}


def _fill(item: int, arrays: Any, seed: int | None) -> None:
    arrays["x"][...] = item
    arrays["y"][...] = item % 256


@jax.jit
def _slow_check(x: Any, y: Any) -> Any:
    z = jax.lax.fori_loop(0, 150, lambda i, c: (c ^ (x * jnp.uint32(2654435761))) + x, x)
    first = x[:, 0]
    same = (x == first[:, None]).all() & (y == (first % 256).astype(y.dtype)[:, None]).all()
    return same, first, z.sum(dtype=jnp.uint32)


@jax.jit
def _expected(first: Any) -> Any:
    x = jnp.broadcast_to(first[:, None], (first.shape[0], WIDTH)).astype(jnp.uint32)
    z = jax.lax.fori_loop(0, 150, lambda i, c: (c ^ (x * jnp.uint32(2654435761))) + x, x)
    return z.sum(dtype=jnp.uint32)


async def corrupt_batches(count: int, num_workers: int = 2) -> tuple[int, int]:
    """Run ``count`` batches through computations in flight; returns corrupt ones, free slots."""
    group = DataGroup(2, range(10**9), loader_arrays=ARRAYS)
    corrupt = 0
    flying: deque[Any] = deque()
    shelf: deque[Any] = deque()
    loader = Loader(
        _fill, group, depth=4, num_workers=num_workers, end_at=("batch", count), timeout=20
    )

    def land() -> int:
        indices, results = flying.popleft()
        same, first, total = jax.block_until_ready(results)
        right = list(indices) == first.tolist() and int(_expected(first)) == int(total)
        return int(not (bool(same) and right))

    async with loader:
        async for batch in loader:
            x, y = batch.arrays["x"], batch.arrays["y"]
            flying.append((batch.indices, _slow_check(x, y)))
            way = batch.batch_num % 4
            if way == 0:
                x.delete()  # while it is being read
            elif way == 1:
                batch.release()
            elif way == 2:
                view = np.asarray(x)
                corrupt += int(not (view[:, -1] == np.asarray(batch.indices)).all())
                del view
            else:
                shelf.append((batch.indices, x))  # read when the loader is batches ahead
            del batch, x, y
            while len(shelf) > 1:
                indices, kept = shelf.popleft()
                corrupt += int(np.asarray(kept)[:, -1].tolist() != list(indices))
                del kept
            while len(flying) > 6:
                corrupt += land()
        while flying:
            corrupt += land()
        shelf.clear()
        arena = loader._running._arena  # type: ignore[union-attr]
        await until(lambda: gc.collect() >= 0 and arena.on_loan == 0)
        return corrupt, arena.depth - arena.on_loan


def test_no_batch_is_overwritten_while_anything_reads_it() -> None:
    """Deleted, released and viewed batches with computations in flight: none is corrupt."""
    assert run_on("asyncio", corrupt_batches(800)) == (0, 4)


def test_the_same_run_is_corrupt_when_the_lease_ends_with_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the lease is for: slots that return with the batch are written too early."""
    monkeypatch.setattr(arena_module.Arena, "_lend", _lend_until_the_slot_is_gone)
    corrupt, _ = run_on("asyncio", corrupt_batches(300))
    assert corrupt > 0


_lend = arena_module.Arena._lend


def _lend_until_the_slot_is_gone(self: Any, index: int, layout_key: int, rows: int) -> Any:
    slot = _lend(self, index, layout_key, rows)
    self._forget(index)
    weakref.finalize(slot, self._ended, index, None).atexit = False
    return slot


@both_loops
def test_arrays_on_the_cpu_are_the_slots_memory(loop: str) -> None:
    """Zero copy, shown by address: as many addresses as slots, each on a 64-byte boundary."""

    async def main() -> None:
        addresses = set()
        group = DataGroup(8, range(64), loader_arrays=ARRAYS)
        async with Loader(_fill, group, depth=2, end_at=("epoch", 3)) as loader:
            arena = loader._running._arena  # type: ignore[union-attr]
            start = ctypes.addressof(ctypes.c_char.from_buffer(arena._segment.buffer))
            async for batch in loader:
                for array in batch.arrays.values():
                    address = array.unsafe_buffer_pointer()
                    assert address % 64 == 0
                    assert start <= address < start + len(arena._segment.buffer)
                    addresses.add(address)
        assert len(addresses) == 2 * 2  # two arrays in two slots

    run_on(loop, main())


def test_what_is_kept_after_the_loader_has_closed_stays_whole() -> None:
    """The memory lives as long as the last array over it."""

    async def main() -> Any:
        async with Loader(simple_load, simple_group(), num_workers=1) as loader:
            return await anext(loader), await anext(loader)

    first, second = run_on("asyncio", main())
    assert first.arrays["x"][:, 0].tolist() == list(range(8))
    assert second.arrays["x"][:, 0].tolist() == list(range(8, 16))


def test_a_conversion_on_the_way_is_safe_too() -> None:
    """Storage in uint8 delivered as float32: the slot is held until the conversion is done."""
    arrays = {"image": ((64, 64), "uint8", "float32")}

    def load(item: int, arrays: Any, seed: int | None) -> None:
        arrays["image"][...] = item % 251

    async def main() -> None:
        group = DataGroup(8, range(4000), loader_arrays=arrays)
        async with Loader(load, group, num_workers=1, end_at=("batch", 200)) as loader:
            async for batch in loader:
                image = np.asarray(batch.arrays["image"])
                assert image.dtype == np.float32
                assert image[:, 5, 5].tolist() == [i % 251 for i in batch.indices]

    run_on("asyncio", main())
