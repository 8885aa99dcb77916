"""The session of one iterator: parcels of elements, in order, by workers that outlive it."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import cloudpickle

from aioloader._datasets.cargo import unload
from aioloader._datasets.parcels import SIZES, Awaiting, Pace, ParcelFeed, parcels
from aioloader._datasets.runs import Runs
from aioloader._datasets.worker_recipe import Rest, mark_of
from aioloader._engine.hosting import Host
from aioloader._engine.session import Session
from aioloader._engine.stages import SessionSpec
from aioloader._executors.process import ProcessExecutor
from aioloader.errors import LoadError
from aioloader.protocols import Work

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from aioloader._datasets.parcels import Arrived
    from aioloader._datasets.worker_recipe import Order, Recipe, Startup
    from aioloader._engine.conveyor import Outcome
    from aioloader._engine.stages import Loaded
    from aioloader.protocols import Ticket

__all__ = ["Chunk", "Crew", "Epoch", "Manning"]

_WHAT_RECIPES_NEED = ("aioloader._datasets.map_dataset",)
_SPARE_SLOTS = 3
_SPARE_SLOTS_AWAITING = 16


@final
@dataclass(frozen=True)
class Manning:
    """Who works for one `MapDataset`: which of the workers, and how far ahead."""

    num_workers: int
    buffer_size: int
    startup: Startup | None


@final
@dataclass(slots=True)
class Chunk:
    """Elements in a row, as they have come; ``marks`` are empty where all of them were kept."""

    order: Order
    marks: bytes
    elements: deque[Any]


@final
class Crew:
    """The workers of one `MapDataset` in one pipeline, for all iterators over it.

    Owns a thread with all sessions, one of which is kept between epochs. What runs in there
    does not refer to this, so that the end of the last pipeline and iterator ends the workers.
    """

    def __init__(
        self, recipe: Recipe, manning: Manning, awaited: Any = None, width: int = 1
    ) -> None:
        self._recipe = recipe
        self._manning = manning
        self._awaited = awaited
        self._width = width
        self.depth = manning.num_workers * manning.buffer_size + _SPARE_SLOTS
        at_least = 1
        if awaited is not None:
            self.depth += _SPARE_SLOTS_AWAITING
            assert isinstance(recipe.dataset, Rest)
            at_least = -(-3 * width // (self.depth * max(len(recipe.dataset.places(0)), 1)))
        self.pace = Pace(at_least)
        self.host = Host("aioloader-datasets")
        self._lock = threading.Lock()
        self._users = 0
        weakref.finalize(self, self.host.abandon).atexit = False

    def __repr__(self) -> str:
        return f"<Crew: {self._manning.num_workers} workers, {self._users} iterators>"

    @property
    def is_awaiting(self) -> bool:
        """Whether parts of elements are awaited on the loop of the program."""
        return self._awaited is not None

    @property
    def lendable(self) -> int:
        """How many slots a program may keep; the rest is for workers."""
        return self.depth - self._manning.num_workers * self._manning.buffer_size

    def enlist(self) -> None:
        """Note an iterator that uses the workers."""
        with self._lock:
            self._users += 1

    def discharge(self, epoch: Epoch, *, keep: bool) -> Future[None] | None:
        """Note that one does no longer; the last one may end the workers, or keep them."""
        with self._lock:
            self._users -= 1
            if self._users == 0 and not keep:
                return self.host.abandon()
        self.host.run(lambda: epoch.end(keep=keep))
        return None

    def retire(self) -> Future[None] | None:
        """End workers that nobody uses."""
        with self._lock:
            return self.host.abandon() if self._users == 0 else None

    def opener(self) -> Opener:
        """Return what opens a session."""
        return Opener(
            self._recipe, self._manning, self._awaited, self._width, self.depth, self.pace
        )


@final
@dataclass(frozen=True)
class Opener:
    """Opens sessions; all that they know of a `Crew`."""

    recipe: Recipe
    manning: Manning
    awaited: Any
    width: int
    depth: int
    pace: Pace

    async def __call__(self, tickets: Iterator[Ticket]) -> Session:
        """Return a running session."""
        awaiting = None
        if self.awaited is not None:
            awaiting = Awaiting(self.awaited, self.recipe.dataset.places, Runs(self.width))
        key = self.pace.key
        work = Work(
            self.recipe,
            SIZES,
            num_workers=self.manning.num_workers,
            startup=self.manning.startup,
        )
        spec = SessionSpec(
            ParcelFeed(key, is_plain=awaiting is None),
            await asyncio.to_thread(self._executor, work),
            SIZES[: key + 1],
            self.depth,
            True,
            _nothing_to_reclaim,
            fetch=awaiting,
            max_concurrency=self.depth,
        )
        session = Session(spec, tickets)
        await session.open()
        return session

    def _executor(self, work: Work) -> ProcessExecutor:
        try:
            return ProcessExecutor(work, preload=_WHAT_RECIPES_NEED)
        except TypeError as error:
            error.add_note(f"It is in {_culprit(self.recipe, self.manning)}")
            raise


def _nothing_to_reclaim() -> None:
    return None  # only some slots are lent to the program, and it may keep those


def _culprit(recipe: Recipe, manning: Manning) -> str:
    """Name the first stage that cannot be sent to workers."""
    if manning.startup is not None and not _travels(manning.startup):
        return f"worker_init_fn={manning.startup.function!r}"
    for stage in recipe.stages:
        if not _travels(stage):
            return repr(stage)
    dataset = recipe.dataset
    if isinstance(dataset, Rest):
        return next((repr(step) for step in dataset.steps if not _travels(step)), repr(dataset))
    while parents := [p for p in dataset._parents if not _travels(p)]:
        dataset = parents[0]
    return repr(dataset)


def _travels(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True


@final
class Epoch:
    """One iterator's use of a `Crew`. Its methods that are coroutines run in the crew's thread.

    ``ask`` is for one thread at a time, and not to be called again before it is answered, but
    to begin ``afresh``.
    """

    def __init__(self, crew: Crew, length: int) -> None:
        self._host, self._pace, self._open = crew.host, crew.pace, crew.opener()
        self._lendable = crew.lendable
        self._length = length
        self._failed = bytes([mark_of(len(self._open.recipe.stages), failed=True)])
        self._turn = asyncio.Lock()
        self._opening: asyncio.Future[Session] | None = None
        self._growing: asyncio.Task[None] | None = None
        self._leases: list[weakref.ref[Any]] = []
        self.loop: asyncio.AbstractEventLoop | None = None

    def ask(self, start: int, skips: tuple[int, ...], *, afresh: bool) -> Future[Chunk | None]:
        """Ask for the next elements, or for those from ``start`` on; None is the end."""
        return self._host.submit(self._next(start, skips, afresh))

    async def end(self, *, keep: bool) -> None:
        """Give the session back."""
        async with self._turn:
            opening, self._opening = self._opening, None
            if opening is None:
                return
            try:
                session = await opening
            except Exception:  # it has been told, or nobody wants to know
                return
            await self._host.take_back(session, keep=keep)

    async def _next(self, start: int, skips: tuple[int, ...], afresh: bool) -> Chunk | None:
        async with self._turn:
            if self._opening is None:
                tickets = parcels(start, self._length, skips, self._pace, self.loop)
                self._opening = asyncio.ensure_future(self._host.begin(self._open, tickets))
                afresh = False
            try:
                # Who begins afresh cancels what was asked before, but not the workers' start.
                session = await asyncio.shield(self._opening)
            except Exception:
                self._opening = None
                raise
            if afresh:
                session.restart(parcels(start, self._length, skips, self._pace, self.loop))
            return await self._take(session)

    async def _take(self, session: Session) -> Chunk | None:
        while True:
            while (outcome := session.take()) is None:
                if session.ended():
                    return None
                await session.changed()
            chunk = self._open_parcel(session, outcome)
            if chunk is not None:
                return chunk
            # One of several elements ends workers, or cannot be read: each goes alone now.
            order = outcome.ticket.order  # type: ignore[attr-defined]
            rest = (order.start, self._length, order.skips, self._pace, self.loop, order.stop)
            session.restart(parcels(*rest))

    def _open_parcel(self, session: Session, outcome: Outcome[Any, Loaded]) -> Chunk | None:
        """Return what came of a parcel; None if something happened to one of several elements."""
        order: Order = outcome.ticket.order
        alone = order.stop - order.start == 1
        error, outcome.error = outcome.error, None
        loaded, outcome.value = outcome.value, None
        try:
            if error is not None:
                if not isinstance(error, LoadError) or error.row is None:
                    raise error  # no worker can do anything
                return Chunk(order, self._failed, deque([error])) if alone else None
            assert loaded is not None
            return self._unload(session, order, loaded.placed.arrays["tree"])
        except _Unreadable as unreadable:
            return Chunk(order, self._failed, deque([unreadable.error])) if alone else None
        finally:
            del error, loaded

    def _unload(self, session: Session, order: Order, arrived: Arrived) -> Chunk:
        made, cargo = arrived.made, arrived.made.cargo
        self._pace.learn(made, order.stop - order.start)
        feed = session.feed
        assert isinstance(feed, ParcelFeed)
        if self._pace.key > feed.key and self._growing is None:
            self._growing = asyncio.create_task(self._grow(session, feed))
        lend = cargo.is_lent
        if lend:
            self._leases = [lease for lease in self._leases if lease() is not None]
            lend = len(self._leases) < self._lendable
            if lend:
                self._leases.append(arrived.lease)
        try:
            elements = unload(cargo, arrived.memory, lend=lend)
        except Exception as error:
            raise _Unreadable(error) from None
        return Chunk(order, made.marks, deque(elements))

    async def _grow(self, session: Session, feed: ParcelFeed) -> None:
        key = self._pace.key
        try:
            await session.enlarge(SIZES[: key + 1])
            feed.key = key
        except MemoryError:
            self._pace.stop_growing(feed.key)
        finally:
            self._growing = None


class _Unreadable(Exception):
    """What a worker has sent cannot be unpickled here."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        error.add_note("this element came from a worker, and could not be unpickled")
        self.error = error
