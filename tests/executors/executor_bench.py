"""A bench for executors: one with its arena, filled and read as the engine does it."""

from __future__ import annotations

import contextlib
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from aioloader._executors.coroutines import CoroutineExecutor
from aioloader._executors.process import ProcessExecutor
from aioloader._executors.threads import ThreadExecutor
from aioloader._memory.arena import Arena, slot_bytes
from aioloader._memory.declaring import make_layouts
from aioloader.errors import ItemError
from aioloader.protocols import Work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from aioloader.protocols import Executor

ROWS = 8
LAYOUTS = (
    make_layouts({"x": ((), "int64", "int32"), "y": ((3,), "uint8", "uint8")}, ROWS, "arrays"),
)
KINDS: Mapping[str, Callable[[Work], Executor]] = {
    "processes": ProcessExecutor,
    "threads": ThreadExecutor,
    "coroutines": CoroutineExecutor,
}

all_kinds = pytest.mark.parametrize("kind", list(KINDS))


@dataclass
class Result:
    """What a fill brought, copied out of its slot."""

    x: list[int]
    y: list[list[int]]
    extras: Any
    retries: int


@dataclass
class Bench:
    """An executor that is running, and an arena over its memory."""

    executor: Any
    arena: Arena
    feeder: anyio.Lock = field(default_factory=anyio.Lock)

    async def fill(
        self,
        items: Sequence[Any],
        *,
        rows: Sequence[int] | None = None,
        seeds: Sequence[int | None] | None = None,
        background: int = -1,
    ) -> Result:
        """Fill rows of a slot, which before held ``background``, and return what is in them."""
        async with self.feeder:
            slot = await self.arena.acquire(0, ROWS)
        slot.arrays["x"][...] = background
        slot.arrays["y"][...] = 0
        rows = range(len(items)) if rows is None else rows
        seeds = [None] * len(items) if seeds is None else seeds
        try:
            filled = await self.executor.fill(slot, rows, items, seeds)
            x, y = slot.arrays["x"].tolist(), slot.arrays["y"].tolist()
            return Result(x, y, filled.extras, filled.retries)
        except ItemError as error:
            traceback.clear_frames(error.__traceback__)  # they hold views of the slot
            raise
        finally:
            slot.release()


@contextlib.asynccontextmanager
async def bench(
    load: Callable[..., Any], kind: str = "processes", *, depth: int = 4, **options: Any
) -> AsyncIterator[Bench]:
    """Run an executor of one kind; a plain ``load`` is made a coroutine function for coroutines."""
    if kind == "coroutines":
        load = as_coroutine(load)
    options = {"num_workers": 2, **options}
    executor = KINDS[kind](Work(load, LAYOUTS, **options))
    segment = executor.allocate(depth * slot_bytes(LAYOUTS))
    arena = Arena(segment, depth=depth, layouts=LAYOUTS, reclaim=lambda: None)
    try:
        async with executor:
            yield Bench(executor, arena)
    finally:
        arena.close()


def as_coroutine(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return a coroutine function that lets others run, then does what ``load`` does."""

    async def coroutine(item: Any, arrays: Any, seed: Any) -> Any:
        await anyio.sleep(0)
        returned = load(item, arrays, seed)
        return await returned if hasattr(returned, "__await__") else returned

    return coroutine
