"""For tests: contracts that every executor keeps, and a census of what may be left behind.

::

    class TestMyExecutor(ExecutorContract):
        def make_executor(self, work):
            return MyExecutor(work)

    async def test_my_program():
        with no_leaks():
            async with Loader(...) as loader:
                ...
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

import anyio

from aioloader._memory.arena import Arena, slot_bytes
from aioloader._memory.layout import make_layouts
from aioloader.errors import ItemError
from aioloader.protocols import Arrays, Executor, Layouts, Work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

__all__ = ["Census", "ExecutorContract", "no_leaks"]

T = TypeVar("T")

_SETTLE_SECONDS = 2.0


@final
@dataclass(frozen=True)
class Census:
    """What a program holds at one moment, on Linux: each a set of readable names."""

    processes: frozenset[str] = field(default_factory=frozenset)
    threads: frozenset[str] = field(default_factory=frozenset)
    descriptors: frozenset[str] = field(default_factory=frozenset)
    shared_memory: frozenset[str] = field(default_factory=frozenset)
    tasks: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def take(cls) -> Census:
        """Count what there is now."""
        return cls(
            frozenset(_processes()),
            frozenset(_threads()),
            frozenset(_descriptors()),
            frozenset(_shared_memory()),
            frozenset(_tasks()),
        )

    def beyond(self, before: Census) -> dict[str, list[str]]:
        """Return what there is now and was not ``before``, by kind."""
        kinds = self.__dataclass_fields__
        new = {kind: sorted(getattr(self, kind) - getattr(before, kind)) for kind in kinds}
        return {kind: names for kind, names in new.items() if names}


@contextlib.contextmanager
def no_leaks(*, settle_seconds: float = _SETTLE_SECONDS) -> Iterator[None]:
    """Raise AssertionError if the block leaves anything behind.

    Processes, threads, descriptors, shared memory and tasks are counted before and after;
    what is new has ``settle_seconds`` to go away. Threads that anyio keeps for a loop, and
    the standard library's resource tracker, are not counted.
    """
    before = Census.take()
    yield
    deadline = time.monotonic() + settle_seconds
    while left := Census.take().beyond(before):
        if time.monotonic() > deadline:
            raise AssertionError(f"left behind: {left}")
        gc.collect()  # which also has JAX let go of host memory
        time.sleep(0.01)


def _processes() -> Iterator[str]:
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for pid in path.read_text().split():
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if "resource_tracker" not in command:
                    yield f"{pid}: {command.strip()}"


def _threads() -> Iterator[str]:
    for thread in threading.enumerate():
        if not thread.name.startswith("AnyIO worker thread"):
            yield f"{thread.name} ({thread.ident})"


def _descriptors() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            yield f"{name}: {os.readlink(f'/proc/self/fd/{name}')}"


def _shared_memory() -> Iterator[str]:
    yield from (f"/dev/shm/{name}" for name in os.listdir("/dev/shm"))
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "aioloader-" in line:
            yield line


def _tasks() -> Iterator[str]:
    with contextlib.suppress(RuntimeError):
        for task in asyncio.all_tasks():
            yield task.get_name()


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
