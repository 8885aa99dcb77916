"""The smallest things that a session can run on: a feed of numbers and an executor in place."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np

from aioloader._engine.session import Session
from aioloader._engine.stages import Placed, SessionSpec
from aioloader._memory.declaring import make_layouts
from aioloader._memory.segment import PrivateSegment
from aioloader.errors import ItemError
from aioloader.protocols import Filled, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from aioloader._engine.conveyor import Outcome
    from aioloader._memory.arena import ArenaSlot

ROWS = 4
LAYOUTS = (
    make_layouts({"x": ((), "int64", "int32")}, ROWS, "a"),
    make_layouts({"x": ((2,), "int32", "int32")}, ROWS, "a"),
)


def tickets(count: int, *, start: int = 0, rows: int = ROWS, group: int = 0) -> list[Ticket]:
    """Return tickets whose items are whole numbers, ``rows`` to each."""
    return [
        Ticket(n, False, group, 0, n, n, n, range(n * rows, (n + 1) * rows), 1, None)
        for n in range(start, start + count)
    ]


class Feed:
    """Items are their indices, and arrays are placed as they are, or copied."""

    def __init__(self) -> None:
        self.layouts = LAYOUTS
        self.tickets_are_slow = self.slow = self.copies = False
        self.placing: Any = None

    def layout_key(self, ticket: Ticket) -> int:
        return ticket.group

    def items(self, ticket: Ticket) -> Sequence[Any]:
        return list(ticket.indices)

    def items_are_quick(self, ticket: Ticket) -> bool:
        return not self.slow

    def place(self, ticket: Ticket, slot: ArenaSlot, extras: Any) -> Placed:
        if self.placing is not None:
            self.placing(ticket, slot)
        arrays = dict(slot.arrays)
        if self.copies:
            arrays = {name: array.copy() for name, array in arrays.items()}
        return Placed(arrays, slot.layouts)

    def place_is_quick(self, slot: Any) -> bool:
        return not self.slow


class Begun:
    """What an executor has begun and tells of when it is done."""

    def __init__(self, filling: Coroutine[Any, Any, Filled], on_done: Callable[[], object]) -> None:
        self.is_abandoned = False
        self._task = asyncio.ensure_future(filling)
        self._task.add_done_callback(lambda _: self.is_abandoned or on_done())

    @property
    def error(self) -> ItemError | None:
        error = self._task.exception()
        return error if isinstance(error, ItemError) else None

    def result(self) -> Filled:
        return self._task.result()

    def abandon(self) -> None:
        self.is_abandoned = True
        self._task.cancel()


class Executor:
    """Fills rows on the loop, once it is let; counts what goes on.

    Where it ``begins`` them, the session has no task for a batch.
    """

    begins = False

    def __init__(self) -> None:
        if self.begins:
            self.begin_fill = lambda *args: Begun(self.fill(*args[:-1]), args[-1])
        self.entered = self.left = self.allocated = 0
        self.filling: list[list[Any]] = []
        self.cancelled = 0
        self.go = asyncio.Event()
        self.go.set()
        self.fails: set[Any] = set()
        self.segment: PrivateSegment | None = None

    def allocate(self, nbytes: int) -> PrivateSegment:
        self.allocated += nbytes
        self.segment = PrivateSegment(nbytes)
        return self.segment

    async def __aenter__(self) -> Executor:
        self.entered += 1
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.left += 1

    async def fill(self, slot: Any, rows: Any, items: Any, seeds: Any) -> Filled:
        views = slot.arrays
        self.filling.append(list(items))
        try:
            await self.go.wait()
            await anyio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        for row, item in zip(rows, items, strict=True):
            if item in self.fails:
                error = ItemError(f"bad item {item}", row=row, remote_traceback="from afar")
                error.__cause__ = ValueError(item)
                raise error
            views["x"][row, ...] = item
        return Filled({"item": list(items)}, 0.5, 1)


def spec(feed: Feed, executor: Any, **options: Any) -> SessionSpec:
    """Return a specification with two slots, in order."""
    settings = {"depth": 2, "ordered": True, "reclaim": lambda: None, **options}
    return SessionSpec(feed, executor, LAYOUTS, **settings)


async def opened(
    wanted: Iterable[Ticket], feed: Feed | None = None, executor: Any = None, **options: Any
) -> Session:
    """Open a session over tickets."""
    specification = spec(feed or Feed(), executor or Executor(), **options)
    session = Session(specification, iter(wanted))
    await session.open()
    return session


async def following(session: Session) -> Outcome[Ticket, Any] | None:
    """Wait for the next outcome, as a loader does; None is the end."""
    with anyio.fail_after(10):
        while (outcome := session.take()) is None:
            if session.ended():
                return None
            await session.changed()
    return outcome


async def everything(session: Session) -> list[list[Any]]:
    """Read to the end, letting go of each batch; return what was in them."""
    seen = []
    while (outcome := await following(session)) is not None:
        if outcome.error is not None:
            raise outcome.error
        assert outcome.value is not None
        seen.append(np.asarray(outcome.value.placed.arrays["x"]).tolist())
        outcome.value = None
    return seen
