"""Stages: what becomes of one batch once it has a slot; remember, load, store and place."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, final

from aioloader._engine.explaining import Foreign, explain
from aioloader.protocols import take_seeds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from concurrent.futures import ThreadPoolExecutor

    from aioloader._engine.conveyor import Passage, Settle
    from aioloader._engine.fetching import Fetcher
    from aioloader._engine.statistics import Meter
    from aioloader._executors.jobs import Job
    from aioloader._memory.arena import ArenaSlot
    from aioloader.protocols import Cache, Executor, Extras, Filled, Layouts, Ticket

__all__ = ["Feed", "Loaded", "Placed", "SessionSpec", "Stages"]

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True)
class Placed:
    """Arrays as the consumer gets them, their layouts, and whether those are the cache's."""

    arrays: Mapping[str, Any]
    layouts: Layouts
    cached: bool = False


class Feed(Protocol):
    """What a session asks of the face above it. Nothing here may touch the event loop."""

    @property
    def tickets_are_slow(self) -> bool:
        """Whether drawing a ticket may take a millisecond, and should be done in a thread."""

    def layout_key(self, ticket: Ticket) -> int:
        """Return which of the layouts the ticket's slot has."""

    def items(self, ticket: Ticket) -> Sequence[Any]:
        """Return the ticket's items."""

    def items_are_quick(self, ticket: Ticket) -> bool:
        """Tell whether that takes well under a millisecond."""

    def place(self, ticket: Ticket, slot: ArenaSlot, extras: Extras) -> Placed:
        """Return the arrays to deliver, over the slot or apart from it."""

    def place_is_quick(self, slot: ArenaSlot) -> bool:
        """Tell whether that takes well under a millisecond."""


@final
@dataclass(frozen=True, slots=True)
class SessionSpec:
    """How a session is to run; ``prepare`` is called in a thread before the first ticket."""

    feed: Feed
    executor: Executor
    layouts: tuple[Layouts, ...]
    depth: int
    ordered: bool
    reclaim: Callable[[], object]
    fetch: Callable[[Any], Awaitable[Any]] | None = None
    max_concurrency: int = 64
    retries: int = 0
    item_timeout: float | None = None
    caches: Mapping[int, Cache] | None = None
    prepare: Callable[[], object] | None = None


@final
@dataclass(slots=True)
class Loaded:
    """A batch on its way to the consumer; ``hold`` is its unit of depth.

    ``remembered`` tells whether a cache had it.
    """

    ticket: Ticket
    placed: Placed
    extras: Extras
    nbytes: int
    hold: object
    remembered: bool = False


@final
class Stages:
    """One batch's way from a slot on loan to arrays for the consumer.

    User code that may take long runs in the session's two threads, ``lookup`` and ``helper``.
    """

    def __init__(
        self,
        spec: SessionSpec,
        meter: Meter,
        helper: ThreadPoolExecutor,
        lookup: ThreadPoolExecutor,
    ) -> None:
        self._spec = spec
        self._meter = meter
        self._helper = helper
        self._lookup = lookup
        self._loop = asyncio.get_running_loop()
        self._begin_fill = getattr(spec.executor, "begin_fill", None)
        self.feed = spec.feed
        self.fetcher: Fetcher | None = None

    async def __call__(self, ticket: Ticket, slot: ArenaSlot) -> Loaded:
        """Take a batch through all stages; ``slot`` is its own from the beginning."""
        cache = self._cache(slot)
        rows: Sequence[int] = range(ticket.rows)
        if cache is not None:
            rows = await self._remember(cache, ticket, slot)
        if rows:
            slot.extras = await self._fill(ticket, slot, rows)
        if rows and cache is not None:
            await self._store(cache, ticket, slot, rows)
        return self.finished(ticket, slot, await self._place(ticket, slot))

    def begin(self, ticket: Ticket, slot: ArenaSlot, settle: Settle) -> Passage | None:
        """Begin a batch that will wait for nothing but workers, and needs no task for that.

        ``settle`` gets it, or its error. Returns None where it is to be awaited.
        """
        feed = self.feed
        if self._begin_fill is None or self.fetcher is not None or self._cache(slot) is not None:
            return None
        if not feed.items_are_quick(ticket) or not feed.place_is_quick(slot):
            return None
        passage = _WorkersOnly(self, ticket, slot, settle)
        return passage if passage.begin(self._begin_fill) else None

    def _cache(self, slot: ArenaSlot) -> Cache | None:
        caches = self._spec.caches
        return caches.get(slot.layout_key) if caches else None

    def finished(self, ticket: Ticket, slot: ArenaSlot, placed: Placed) -> Loaded:
        """Let go of the slot, which is the consumer's now."""
        nbytes = 0
        for array in slot.arrays.values():
            nbytes += array.nbytes
        loaded = Loaded(ticket, placed, slot.extras, nbytes, slot.hold, slot.adopted)
        slot.release()
        return loaded

    async def _remember(self, cache: Cache, ticket: Ticket, slot: ArenaSlot) -> Sequence[int]:
        started = time.perf_counter()
        try:
            return await cache.fetch(ticket, slot)
        finally:
            self._meter.span("load", started, time.perf_counter() - started)

    async def _store(
        self, cache: Cache, ticket: Ticket, slot: ArenaSlot, rows: Sequence[int]
    ) -> None:
        started = time.perf_counter()
        try:
            await cache.store(ticket, slot, rows)
        except Exception as error:
            explained = explain(error, ticket, (), stage="store")
        else:
            self._meter.store_seconds += time.perf_counter() - started
            return
        try:
            raise explained
        finally:
            del explained

    async def _fill(self, ticket: Ticket, slot: ArenaSlot, rows: Sequence[int]) -> Extras:
        feed, started = self.feed, time.perf_counter()
        items: Sequence[Any] = ()
        try:
            if feed.items_are_quick(ticket):
                items = feed.items(ticket)
            else:
                items = await self._foreign(self._lookup, feed.items, ticket)
            seeds, wanted = ticket.row_seeds, items
            if len(rows) != ticket.rows:
                wanted = [items[row] for row in rows]
                seeds = take_seeds(seeds, rows)
            filled = await self._fill_from(slot, rows, wanted, seeds)
        except Exception as error:
            explained = explain(error, ticket, items)
        else:
            return self.note(filled, started)
        try:
            raise explained  # out here, where it does not get `error` as its context
        finally:
            del explained  # nor is it kept by its own frame

    async def _fill_from(
        self, slot: ArenaSlot, rows: Sequence[int], items: Sequence[Any], seeds: Any
    ) -> Filled:
        if self.fetcher is None:
            return await self._spec.executor.fill(slot, rows, items, seeds)
        started = time.perf_counter()
        fetched = await self.fetcher.fill(slot, rows, items, seeds)
        span = fetched.finished - started
        self._meter.span("fetch", started, span)
        self._meter.span("load", started, -span)  # `_fill` measures the whole
        self._meter.fetch_seconds += fetched.seconds
        self._meter.retries += fetched.retries
        return fetched.filled

    def note(self, filled: Filled, started: float) -> Extras:
        """Count what has been filled."""
        self._meter.span("load", started, time.perf_counter() - started)
        self._meter.load_seconds += filled.seconds
        self._meter.retries += filled.retries
        return filled.extras or {}

    async def _place(self, ticket: Ticket, slot: ArenaSlot) -> Placed:
        feed, started = self.feed, time.perf_counter()
        try:
            if feed.place_is_quick(slot):
                return feed.place(ticket, slot, slot.extras)
            return await self._foreign(self._helper, feed.place, ticket, slot, slot.extras)
        except Exception as error:
            explained = explain(error, ticket, (), stage="place")
        finally:
            self.placed(started)
        try:
            raise explained
        finally:
            del explained

    def placed(self, started: float) -> None:
        """Count the time that placing took."""
        seconds = time.perf_counter() - started
        self._meter.place_seconds += seconds
        self._meter.span("place", started, seconds)

    async def _foreign(
        self, thread: ThreadPoolExecutor, function: Callable[..., T], *args: Any
    ) -> T:
        def call() -> T | Foreign:
            try:
                return function(*args)
            except BaseException as error:
                return Foreign(error)

        result = await self._loop.run_in_executor(thread, call)
        if isinstance(result, Foreign):
            raise result
        return result


@final
class _WorkersOnly:
    """A batch that is filled by workers and placed on the loop, as soon as they have answered.

    ``settle`` is let go of before it is told of an error: it refers to the error by then, whose
    traceback refers to this, and such a circle is kept until the next garbage collection.
    """

    __slots__ = ("_items", "_job", "_settle", "_slot", "_stages", "_started", "_ticket")

    def __init__(self, stages: Stages, ticket: Ticket, slot: ArenaSlot, settle: Settle) -> None:
        self._stages = stages
        self._ticket = ticket
        self._slot = slot
        self._settle: Settle | None = settle
        self._items: Sequence[Any] = ()
        self._job: Job | None = None
        self._started = time.perf_counter()

    def begin(self, fill: Callable[..., Job | None]) -> bool:
        """Hand the batch to workers; returns False, and has done nothing, if `fill` could not."""
        error = self._begin(fill)
        if error is not None:
            self._end(None, error)
        return error is not None or self._job is not None

    def abandon(self) -> None:
        """Let go of it; the slot is the workers' until they are done with what they have begun."""
        if self._job is not None:
            self._job.abandon()
        self._job = self._settle = None

    def _begin(self, fill: Callable[..., Job | None]) -> Exception | None:
        ticket, slot = self._ticket, self._slot
        try:
            self._items = self._stages.feed.items(ticket)
            rows, seeds = range(ticket.rows), ticket.row_seeds
            self._job = fill(slot, rows, self._items, seeds, self._filled)
        except Exception as error:
            return explain(error, ticket, self._items)
        return None

    def _filled(self) -> None:
        try:
            loaded, error = self._outcome()
        except BaseException as interruption:  # of Ctrl-C: it must not seem to be under way
            text = f"placing it was interrupted by {type(interruption).__name__}"
            self._end(None, explain(RuntimeError(text), self._ticket, (), stage="place"))
            raise
        try:
            self._end(loaded, error)
        finally:
            del error  # its own traceback may lead to here

    def _end(self, loaded: Loaded | None, error: Exception | None) -> None:
        settle, self._settle = self._settle, None
        if settle is not None:
            settle(loaded, error)

    def _outcome(self) -> tuple[Loaded | None, Exception | None]:
        job, self._job = self._job, None
        assert job is not None
        if job.error is not None:
            return None, explain(job.error, self._ticket, self._items)
        self._slot.extras = self._stages.note(job.result(), self._started)
        try:
            return self._place(), None
        except Exception as error:
            return None, explain(error, self._ticket, self._items, stage="place")

    def _place(self) -> Loaded:
        stages, ticket, slot, started = self._stages, self._ticket, self._slot, time.perf_counter()
        try:
            placed = stages.feed.place(ticket, slot, slot.extras)
        finally:
            stages.placed(started)
        return stages.finished(ticket, slot, placed)
