"""The loader: `async for batch in loader`."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
import warnings
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, final

from aioloader._device.placement import Placer, reclaim
from aioloader._engine.progress import Progress
from aioloader._engine.session import Session
from aioloader._engine.stages import Loaded, SessionSpec
from aioloader._engine.statistics import LoaderStatistics, Meter
from aioloader._executors.choosing import choose_executor
from aioloader._loaders.batch import Batch, make_batch
from aioloader._loaders.caching import GroupCaches
from aioloader._loaders.checkpoint import Checkpointable
from aioloader._loaders.feed import GroupFeed
from aioloader._loaders.group import DataGroup
from aioloader._loaders.headspace import Headspace
from aioloader._loaders.options import check_options
from aioloader._loaders.references import References, wait_changed
from aioloader._loaders.schedule import make_schedule
from aioloader._loaders.state import make_state, parse_state
from aioloader._loaders.summary import summarize
from aioloader._loaders.tally import Tally
from aioloader.errors import NotCached
from aioloader.protocols import ExecutorFactory, Ticket, Work

if TYPE_CHECKING:
    from aioloader._engine.conveyor import Outcome

__all__ = ["Dataloader", "Loader"]

D = TypeVar("D")
Groups = DataGroup[D] | Iterable[DataGroup[D]]

_logger = logging.getLogger("aioloader")


@final
class Loader(Checkpointable, Generic[D]):
    """Load batches of one or several groups, in workers or on the event loop, ahead of use.

    ::

        def load(item, arrays, seed):
            arrays["x"][...] = decode(item)

        async with Loader(load, group, num_workers=2, end_at=("epoch", 3)) as loader:
            async for batch in loader:
                state = step(state, batch.arrays)

    An async context manager. It owns workers, ``depth`` slots of shared memory and one task,
    and gives them back when it is left, in bounded time whatever the workers are doing. It
    may be entered again. Nothing of it blocks the event loop; what your own step blocks,
    it blocks: see `wait_ready`.

    Args:
        load: ``load(item, arrays, seed)`` fills one row in place: ``arrays`` maps names to
            arrays without the batch dimension, whose content is undefined before. It may
            return a mapping of additional data. A plain function runs in worker processes,
            a coroutine function on the event loop, up to ``max_concurrency`` at once.
            ``seed`` is None for validation.
        training: One group, or several.
        validation: ``("epoch" | "batch", every, groups)``: a run over all batches of
            ``groups`` after each ``every``-th epoch or batch, counted from the beginning.
        fetch: A coroutine function ``fetch(item) -> payload`` that runs on the event loop;
            ``load`` then receives the payload as its item. Return ``item, payload`` where
            ``load`` needs both.
        depth: How many batches may exist at once, being loaded, ready and in use together.
        num_workers: How many worker processes; 0 loads in a thread of this process.
        max_concurrency: How many items are fetched, or loaded by a coroutine, at once.
        start_at: ``(epoch, batches)`` to skip; the batches may exceed an epoch.
        end_at: ``("epoch" | "batch", n)``, absolute, to end before; None never ends.
        interleave_groups: Whether groups take turns, the least used first, or follow one
            after the other.
        deterministic: Whether batches come in the plan's order, or as they become ready.
        timeout: How many seconds to wait without any batch becoming ready before
            `BatchTimeoutError`; None or 0 waits for ever.
        on_error: ``"raise"`` a failed batch's `LoadError` in its turn, or ``"drop"`` it.
        retries: How often an item is tried again when its load or fetch raises.
        item_timeout: How many seconds a load or fetch of one item may take.
        startup: Called once in each worker before it loads anything.
        worker_nice: The niceness of workers, so that the event loop gets a core when it
            wants one.
        place: None for the default device; a device, a sharding, or a function
            ``place(arrays, layouts, additional, group)`` that returns an array for each
            layout. A function runs in a helper thread.
        vectorized: Whether ``load(items, arrays, seeds)`` takes a chunk of rows at once,
            arrays with that leading dimension.
        executor: A function from a `Work` to an `Executor`, in place of the loader's own:
            `ThreadExecutor` loads in ``num_workers`` threads of the program.
        cacher_count: How many batches are cached on disk at once; None: 2, or 1 on two cores.

    Raises:
        ValueError, TypeError: An argument is wrong; the message names it.
        LayoutError: An array's jax dtype needs ``jax_enable_x64``.
    """

    def __init__(
        self,
        load: Callable[..., Any],
        training: Groups[D],
        *,
        validation: tuple[Literal["epoch", "batch"], int, Groups[D]] | None = None,
        fetch: Callable[[D], Awaitable[Any]] | None = None,
        depth: int = 3,
        num_workers: int = 1,
        max_concurrency: int = 64,
        start_at: tuple[int, int] = (0, 0),
        end_at: tuple[Literal["epoch", "batch"], int] | None = None,
        interleave_groups: bool = True,
        deterministic: bool = True,
        timeout: float | None = 60.0,
        on_error: Literal["raise", "drop"] = "raise",
        retries: int = 0,
        item_timeout: float | None = None,
        startup: Callable[[], object] | None = None,
        worker_nice: int = 10,
        place: object = None,
        vectorized: bool = False,
        executor: ExecutorFactory | None = None,
        cacher_count: int | None = None,
    ) -> None:
        self._running: Session | None = None
        self._schedule = make_schedule(training, validation, start_at, end_at, interleave_groups)
        self._placer = Placer(place)
        self._feed = GroupFeed(self._schedule.training, self._schedule.validation, self._placer)
        self._caches = GroupCaches(self._schedule, cacher_count)
        self._work = Work(
            load,
            self._feed.layouts,
            vectorized=bool(vectorized),
            num_workers=num_workers,
            max_concurrency=max_concurrency,
            retries=retries,
            item_timeout=item_timeout,
            startup=startup,
            worker_nice=worker_nice,
        )
        check_options(self._work, fetch, place, depth, timeout, on_error, executor)
        self._fetch = fetch
        self._depth = depth
        self._deterministic = bool(deterministic)
        self._timeout = timeout or math.inf
        self._drop = on_error == "drop"
        self._make_executor = executor or choose_executor
        self._executor: Any = None
        self._start = Progress(self._schedule.start)
        self._progress = Progress(self._schedule.start)
        self._restart_pending = False
        self._interrupted = self._interrupt_next = False
        self._failed: list[int] = []
        self._meter = Meter()
        self._tally = Tally(self.batches_per_epoch, self.batches_per_validation)
        self._references = References()

    def __repr__(self) -> str:
        return f"<Loader: at {self._progress.position}, {self._running or 'not running'}>"

    # Running --------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._running is not None:
            raise RuntimeError("this loader is entered already; make another for another loop")
        self._executor = self._make_executor(self._work)
        self._interrupted = self._interrupt_next
        self._interrupt_next = self._restart_pending = False
        self._failed.clear()
        self._progress = Progress(self._start.position, self._start.ahead)
        self._references = References()
        await self._caches.open()
        spec = SessionSpec(
            self._feed,
            self._executor,
            self._feed.layouts,
            self._depth,
            self._deterministic,
            reclaim,
            fetch=self._fetch,
            max_concurrency=self._work.max_concurrency,
            retries=self._work.retries,
            item_timeout=self._work.item_timeout,
            caches=self._caches.by_layout_key,
            prepare=self._placer.preparation(),
        )
        session = Session(spec, self._tickets())
        self._meter = session.meter
        try:
            await session.open()
        except BaseException:
            await self._caches.aclose()
            raise
        self._running = session
        if self._interrupted:
            session.stop_feeding()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the workers and give everything back; harmless to repeat, from any task."""
        session, self._running = self._running, None
        if session is not None:
            self._meter.stop()
            try:
                await session.aclose()
            finally:
                await self._caches.aclose()

    async def flush(self) -> None:
        """Wait until all batches that were to be cached on disk have been written."""
        await self._caches.flush()

    def __del__(self, _warn: Any = warnings.warn) -> None:  # a program's end empties modules
        if getattr(self, "_running", None) is not None:
            _warn(f"{self!r} was never closed: use `async with`", ResourceWarning, 2)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch[D]:
        """Return the next batch.

        When it is cancelled nothing is lost: the next call returns the same batch.

        Raises:
            LoadError: The next batch could not be loaded; the call after goes on behind it.
            BatchTimeoutError: Nothing became ready in time.
        """
        session = self._session()
        session.kick()
        if session.peek() is not None:
            await asyncio.sleep(0)  # else who never waits keeps the loop from its work
            session = self._session()
        if self._caches.by_layout_key:
            await self._caches.room()
            session = self._session()
        while True:
            if self._restart_pending:
                self._restart(session)
            batch = self._take(session)
            if batch is not None:
                return batch
            started = time.perf_counter()
            try:
                await wait_changed(session, self._timeout, self._depth, self._references)
            finally:
                self._meter.waited(time.perf_counter() - started)
            session = self._session()

    def interrupt(self) -> None:
        """End the stream after the batches that are already loaded; callable from any thread.

        Before the loader is entered, it ends the next run before its first batch.
        """
        if self._running is None:
            self._interrupt_next = True
        else:
            self._interrupted = True
            self._running.stop_feeding()

    def _session(self) -> Session:
        if self._running is None:
            raise RuntimeError("enter the loader first: `async with loader:`")
        self._running.check_loop()
        return self._running

    def _take(self, session: Session) -> Batch[D] | None:
        while (outcome := session.take()) is not None:
            if outcome.value is not None:
                return self._deliver(outcome.value)
            self._refuse(outcome)
        if self._interrupted or session.ended():
            self._tally.check()
            raise StopAsyncIteration
        return None

    def _deliver(self, loaded: Loaded) -> Batch[D]:
        ticket = loaded.ticket
        for position in self._failed:  # the consumer has gone on behind them
            self._progress.passed(position)
        self._failed.clear()
        self._progress.passed(ticket.position)
        self._tally.deliver(ticket)
        caches = self._caches
        keep = caches.keeper(self._feed.layout_key(ticket)) if caches.by_layout_key else None
        batch = make_batch(self._feed.group(ticket), loaded, keep)
        self._references.note(ticket.position, batch)
        return batch

    def _refuse(self, outcome: Outcome[Ticket, Loaded]) -> None:
        error, outcome.error = outcome.error, None
        assert error is not None
        try:
            if not isinstance(error, NotCached if not self._drop else Exception):
                self._failed.append(outcome.ticket.position)
                raise error
            self._meter.dropped += 1
            self._progress.passed(outcome.ticket.position)
            _logger.warning("dropped: %s", error)
            self._tally.drop(outcome.ticket, error)
        finally:
            # An error that its own frames refer to is freed, with all that they refer to,
            # only by a garbage collection; among that is the batch its consumer had.
            del error

    def _tickets(self) -> Any:
        self._tally = Tally(self.batches_per_epoch, self.batches_per_validation)
        start = Progress(self._progress.position, self._progress.ahead)
        return self._tally.issue(self._schedule.plan.tickets(start.position), start)

    # Positions ------------------------------------------------------------------------------

    @property
    def batches_per_epoch(self) -> int:
        """The number of training batches in an epoch, over all groups."""
        return self._schedule.plan.batches_per_epoch

    @property
    def batches_per_validation(self) -> int:
        """The number of batches in a validation run; 0 without validation."""
        return self._schedule.plan.batches_per_validation

    @property
    def first_batch(self) -> int:
        """The training batch that ``start_at`` names."""
        return self._schedule.first_batch

    @property
    def last_batch(self) -> int | None:
        """The training batch to end before, or None if the stream never ends."""
        return self._schedule.plan.end

    @property
    def deterministic(self) -> bool:
        """Whether batches come in the plan's order."""
        return self._deterministic

    @property
    def interrupted(self) -> bool:
        """Whether `interrupt` was called since the loader was entered."""
        return self._interrupted

    def get_state(self) -> dict[str, Any]:
        """Return the position behind the batches that were delivered, as a small JSON value."""
        return make_state(self._schedule.plan, self._progress)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on at a position that `get_state` returned, now or when the loader is entered.

        The number of workers, the depth and the executor may be others than they were.
        Raises `StateError` for a state that is damaged or of another plan.
        """
        self._start = parse_state(state, self._schedule.plan)
        self._progress = Progress(self._start.position, self._start.ahead)
        self._restart_pending = self._running is not None

    def _restart(self, session: Session) -> None:
        self._restart_pending = False
        self._failed.clear()
        session.restart(self._tickets())

    # Figures --------------------------------------------------------------------------------

    def headspace(self, batches: int = 100) -> Headspace[D]:
        """Return an iterator over the next batch, again and again, which is not taken."""
        return Headspace(self._peek, batches)

    async def _peek(self) -> Callable[[], Batch[D]]:
        while True:
            session = self._session()
            if self._restart_pending:
                self._restart(session)
            if (outcome := session.peek()) is not None and outcome.value is not None:
                group = self._feed.group(outcome.ticket)
                return functools.partial(make_batch, group, outcome.value, None)
            if outcome is not None or self._interrupted or session.ended():
                raise RuntimeError("the next batch has failed, or there is none: ask for it first")
            await wait_changed(session, self._timeout, self._depth, self._references)

    def idle_usec(self) -> int:
        """Return the microseconds spent waiting for batches since the last call."""
        return self._meter.take_idle_usec()

    def statistics(self) -> LoaderStatistics:
        """Return a snapshot of what this run has done and waits for."""
        counts = (0, 0, 0, 0) if self._running is None else self._running.counts
        deaths = getattr(self._executor, "worker_deaths", 0)
        return summarize(self._meter, counts, deaths, self._caches.counts, self._fetch)


Dataloader = Loader
