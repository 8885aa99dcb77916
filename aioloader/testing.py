"""For tests: contracts of executors and stores, strict mode, what is left behind, faults.

::

    class TestMyExecutor(ExecutorContract):
        def make_executor(self, work):
            return MyExecutor(work)

    class TestMyStore(StoreContract):
        def make_store(self, objects): ...

    async def test_my_program():
        with no_leaks():
            async with Loader(...) as loader:
                ...

    with strict():
        run(main())

`strict` audits the loaders of a block, and a `Fault` makes something go wrong at a named point
of the protocol, for loaders that are entered inside ``with faults(...)``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import time
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from aioloader._audit import Audit, auditing
from aioloader._census import Census
from aioloader._faults import Fault, faults
from aioloader._memory.arena import Arena, slot_bytes
from aioloader._memory.declaring import make_layouts
from aioloader.errors import ItemError
from aioloader.protocols import Arrays, Executor, Layouts, Work
from aioloader.sources.contract import StoreContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

_new_event_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
with contextlib.suppress(ImportError):  # Windows has none
    from uvloop import new_event_loop as _new_event_loop

__all__ = [
    "Audit",
    "Census",
    "ExecutorContract",
    "Fault",
    "StoreContract",
    "faults",
    "no_leaks",
    "strict",
]

T = TypeVar("T")

_SETTLE_SECONDS = 2.0


@contextlib.contextmanager
def no_leaks(*, settle_seconds: float = _SETTLE_SECONDS) -> Iterator[None]:
    """Raise AssertionError if the block leaves anything behind.

    Processes, threads, descriptors, shared memory and tasks are counted before and after;
    what is new has ``settle_seconds`` to go away. Threads that anyio keeps for a loop, and
    the standard library's resource tracker, are not counted.
    """
    before = _before()
    yield
    left = _left_behind(before, settle_seconds)
    if left:
        raise AssertionError(f"left behind: {left}")


def _before() -> Census:
    if _new_event_loop is not None:
        _new_event_loop().close()  # with its first loop uvloop opens a pipe, which stays
    _wake_stores()  # so do descriptors of obstore's threads
    return Census.take()


def _wake_stores() -> None:
    if (stores := sys.modules.get("aioloader.sources.object_store")) is not None:
        stores.wake_runtime()


def _left_behind(before: Census, settle_seconds: float) -> dict[str, list[str]]:
    deadline = time.monotonic() + settle_seconds
    while left := Census.take().beyond(before):
        if time.monotonic() > deadline:
            return left
        gc.collect()  # which also has JAX let go of host memory
        _wake_stores()
        time.sleep(0.01)
    return {}


@contextlib.contextmanager
def strict(
    *, max_block_seconds: float = 0.1, settle_seconds: float = _SETTLE_SECONDS
) -> Iterator[Audit]:
    """Find mistakes in the block: raise AssertionError with all of them at its end.

    Loaders that are entered in the block, by any thread, are audited: whether anybody writes
    to a slot after its batch has ended, whether each slot comes back once for each loan,
    where the event loop is blocked for more than ``max_block_seconds`` while a loader runs,
    and, as in `no_leaks`, what the block leaves behind. Slots that are free are filled with
    bytes of 0xDB, and so is what `load` finds in its arrays.

    If the block itself raises, what has been found is added to its error as notes, and
    nothing is counted as left behind. Neither is it while such blocks of other threads run.
    """
    before = _before()
    audit = Audit(max_block_seconds)
    try:
        with auditing(audit):
            yield audit
            alone = audit.is_alone()
    except BaseException as error:
        for line in (*audit.problems, *audit.notes):
            error.add_note(f"strict mode: {line}")
        raise
    if alone and (left := _left_behind(before, settle_seconds)):
        audit.report(f"left behind: {left}")
    if audit.problems:
        raise audit.error()


class ExecutorContract:
    """What the engine relies on in an executor. Subclass it, and override `make_executor`."""

    layouts: Layouts = make_layouts(
        {"x": ((3,), "int64", "int32"), "y": ((), "float32", "float32")}, 8, "loader_arrays"
    )

    def make_executor(self, work: Work) -> Executor:
        """Return the executor under test, not entered."""
        raise AssertionError("override make_executor")

    def load(self) -> Callable[..., Any]:
        """Return the load function: override where it has to be a coroutine function."""
        return _load

    def test_rows_are_filled_in_place(self) -> None:
        """All rows of a slot get their items, seeds and extras."""

        async def check(executor: Executor, arena: Arena) -> None:
            slot = await arena.acquire(0, 8)
            filled = await executor.fill(slot, range(8), list(range(10, 18)), list(range(8)))
            assert slot.arrays["x"][:, 0].tolist() == list(range(10, 18))
            assert slot.arrays["x"][:, 1].tolist() == list(range(8))
            assert slot.arrays["y"].tolist() == [i / 2 for i in range(10, 18)]
            assert filled.extras is not None
            assert list(filled.extras["even"]) == [10, None, 12, None, 14, None, 16, None]

        self._run(check)

    def test_scattered_rows_leave_the_others_alone(self) -> None:
        """Rows need not be neighbours, and no other row is touched."""

        async def check(executor: Executor, arena: Arena) -> None:
            slot = await arena.acquire(0, 8)
            slot.arrays["x"][...] = -1
            await executor.fill(slot, [1, 2, 6], [21, 22, 26], [None] * 3)
            assert slot.arrays["x"][:, 0].tolist() == [-1, 21, 22, -1, -1, -1, 26, -1]

        self._run(check)

    def test_several_fills_of_one_slot_run_at_once(self) -> None:
        """Disjoint rows of one slot may be filled concurrently."""

        async def check(executor: Executor, arena: Arena) -> None:
            slot = await arena.acquire(0, 8)
            async with anyio.create_task_group() as group:
                for row in range(8):
                    group.start_soon(executor.fill, slot, [row], [row + 30], [row])
            assert slot.arrays["x"][:, 0].tolist() == list(range(30, 38))

        self._run(check)

    def test_the_first_failing_row_is_named(self) -> None:
        """Whatever order rows run in, the error is that of the lowest row that fails."""

        async def check(executor: Executor, arena: Arena) -> None:
            slot = await arena.acquire(0, 8)
            failed: ItemError | None = None
            try:
                await executor.fill(slot, range(8), [0, 1, 2, "bad", 4, "bad", 6, 7], [None] * 8)
            except ItemError as error:
                failed = error
            assert failed is not None
            assert failed.row == 3
            assert "bad" in str(failed)
            await executor.fill(slot, [3], [3], [None])
            assert slot.arrays["x"][3, 0] == 3

        self._run(check)

    def test_a_cancelled_fill_keeps_its_slot_until_nobody_writes_to_it(self) -> None:
        """The slot comes back by itself, and the executor goes on."""

        async def check(executor: Executor, arena: Arena) -> None:
            slot = await arena.acquire(0, 8)
            with anyio.move_on_after(0.01):
                await executor.fill(slot, range(8), ["slow"] * 8, [None] * 8)
            slot.release()
            del slot
            with anyio.fail_after(20):
                slots = [await arena.acquire(0, 8) for _ in range(arena.depth)]
            await executor.fill(slots[0], range(8), list(range(8)), [None] * 8)
            assert slots[0].arrays["x"][:, 0].tolist() == list(range(8))

        self._run(check)

    def _run(self, check: Callable[[Executor, Arena], Awaitable[None]]) -> None:
        async def main() -> None:
            async with self._running() as (executor, arena):
                await check(executor, arena)

        asyncio.run(main())

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[tuple[Executor, Arena]]:
        layouts = (self.layouts,)
        executor = self.make_executor(Work(self.load(), layouts, num_workers=2))
        segment = executor.allocate(2 * slot_bytes(layouts))
        arena = Arena(segment, depth=2, layouts=layouts, reclaim=gc.collect)
        async with executor:
            yield executor, arena
        arena.close()


def _load(item: Any, arrays: Arrays, seed: int | None) -> Mapping[str, object] | None:
    if item == "slow":
        time.sleep(0.02)
        item = 0
    if item == "bad":
        raise ValueError("a bad item")
    arrays["x"][...] = (item, -1 if seed is None else seed, 0)
    arrays["y"][...] = item / 2
    return {"even": item} if item % 2 == 0 else None
