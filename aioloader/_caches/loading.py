"""Loading: rows of a provider through the shelf, one load for each however many ask."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, final

from anyio import to_thread

from aioloader._caches.flights import Flight, Flights, Landing
from aioloader._caches.keeping import Gone, Unkeepable, is_light, keep
from aioloader._caches.preloading import Gate
from aioloader._caches.shelf import Entry, Shelf
from aioloader._caches.sizes import data_size
from aioloader._iterating import refuse_in_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    import anyio

    from aioloader._caches.preloading import Verdict
    from aioloader._caches.reporting import Reporter

__all__ = ["Rows"]

_logger = logging.getLogger("aioloader.cache")


@final
class Rows:
    """The rows of a provider. Thread-safe; any event loop may ask, and several may.

    ``resolve`` loads a row: ``is_async`` on the loop that asks first, else in a thread.
    ``shelf`` is None where nothing is to be kept. ``interval`` says how often to report.
    """

    def __init__(
        self,
        resolve: Callable[[int], Any],
        *,
        is_async: bool,
        shelf: Shelf | None,
        reporter: Reporter,
        interval: Callable[[], int],
    ) -> None:
        self.resolve = resolve
        self.is_async = is_async
        self.shelf = shelf
        self.gate = Gate()
        self.flights = Flights()
        self.tasks: set[asyncio.Task[None]] = set()
        # Reentrant, because a garbage collector may run anything anywhere.
        self.lock = threading.RLock()
        self.hits = self.misses = self.failures = 0
        self._reporter = reporter
        self._interval = interval

    # Fetching -----------------------------------------------------------------------------------

    def look(self, index: int) -> tuple[bool, Any]:
        """Return whether a row is kept, and it. Never blocks."""
        started = time.perf_counter()
        with self.lock:
            entry = None if self.shelf is None else self.shelf.find(index)
            self.hits += entry is not None
            # A provider that looks for the row that it is asked for is not another consumer.
            miss = entry is None and self.shelf is not None and not self.flights.current(index)
            self.misses += miss
        if entry is not None:
            try:
                value = entry.kept.make()
            except Gone:
                self._drop(index, entry)
                with self.lock:
                    self.hits -= 1
                    self.misses += 1
            else:
                self._fetched(hit=True, started=started)
                return True, value
        return False, None

    async def wait_for(self, index: int) -> Any:
        """Load a row, or wait until it has been loaded."""
        started = time.perf_counter()
        self._refuse_itself(index)
        number = self.gate.enter()
        try:
            while True:
                with contextlib.suppress(Gone):
                    return await self._wait_once(index)
        finally:
            self.gate.leave(number)
            self._fetched(hit=False, started=started)

    async def _wait_once(self, index: int) -> Any:
        boarded, is_new = self._board(index)
        if isinstance(boarded, Entry):
            return self._make(index, boarded)
        try:
            if is_new:
                self._start(boarded, None)
            landing = await asyncio.wrap_future(boarded.landed)
        finally:
            self._leave(boarded)
        return _value_of(landing)

    def wait_here(self, index: int, loop: asyncio.AbstractEventLoop | None) -> Any:
        """Do the same in a thread, and block it. Coroutines run on ``loop``, if there is one."""
        if self.is_async:
            refuse_in_loop("await cache.get_or_load(index)")
            if loop is None or loop.is_closed():
                with asyncio.Runner() as runner:
                    return runner.run(self.wait_for(index))
            asked = asyncio.run_coroutine_threadsafe(self.wait_for(index), loop)
            try:
                return asked.result()
            finally:
                asked.cancel()  # after a Ctrl-C; otherwise it is done
        started = time.perf_counter()
        self._refuse_itself(index)
        number = self.gate.enter()
        try:
            while True:
                with contextlib.suppress(Gone):
                    return self._wait_here_once(index)
        finally:
            self.gate.leave(number)
            self._fetched(hit=False, started=started)

    def _wait_here_once(self, index: int) -> Any:
        boarded, _ = self._board(index)
        if isinstance(boarded, Entry):
            return self._make(index, boarded)
        try:
            # Also a load that somebody else has asked for and that waits for a thread: perhaps
            # it waits for an event loop that is blocked just here.
            self._fly_here(boarded)
            landing = boarded.landed.result()
        finally:
            self._leave(boarded)
        return _value_of(landing)

    def _make(self, index: int, entry: Entry) -> Any:
        try:
            return entry.kept.make()
        except Gone:
            self._drop(index, entry)
            raise

    def _drop(self, index: int, entry: Entry) -> None:
        with self.lock:
            if self.shelf is not None:
                self.shelf.drop(index, entry)

    def _refuse_itself(self, index: int) -> None:
        if self.flights.current(index) is not None:
            raise RuntimeError(f"row {index} would wait for itself: its load asks for it")

    def _fetched(self, *, hit: bool, started: float) -> None:
        if self._reporter.is_on and self.shelf is not None:
            seconds = time.perf_counter() - started
            self._reporter.fetched(hit=hit, seconds=seconds, every=self._interval())

    # Preloading ---------------------------------------------------------------------------------

    def preload_row(self, index: int) -> Verdict:
        """Load a row in this thread, if it is not there or on its way, and keep it."""
        boarded, is_new = self._board(index, demanded=False)
        if isinstance(boarded, Entry):
            return "present"
        try:
            if not is_new:
                return "present"
            self._fly_here(boarded)
            landing = boarded.landed.result()
        finally:
            self._leave(boarded)
        return _verdict_of(boarded, landing)

    async def preload_row_async(self, index: int, limiter: anyio.CapacityLimiter) -> Verdict:
        """Do the same from an event loop, in a thread that ``limiter`` allows."""
        boarded, is_new = self._board(index, demanded=False)
        if isinstance(boarded, Entry):
            return "present"
        try:
            if not is_new:
                return "present"
            self._start(boarded, limiter)
            landing = await asyncio.wrap_future(boarded.landed)
        finally:
            self._leave(boarded)
        return _verdict_of(boarded, landing)

    # Loads --------------------------------------------------------------------------------------

    def _board(self, index: int, *, demanded: bool = True) -> tuple[Entry | Flight, bool]:
        with self.lock:
            # It may have landed since somebody looked.
            entry = None if self.shelf is None else self.shelf.entries.get(index)
            return (entry, False) if entry else self.flights.board(index, demanded=demanded)

    def _leave(self, flight: Flight) -> None:
        with self.lock:
            call_off = self.flights.leave(flight)
        if call_off:
            flight.call_off()

    def _start(self, flight: Flight, limiter: anyio.CapacityLimiter | None) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._fly(flight, limiter), name="aioloader-cache-load")
        self.tasks.add(task)
        flight.carry(partial(_cancel, loop, task))
        task.add_done_callback(partial(self._flown, flight))

    def _flown(self, flight: Flight, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        with self.lock:
            if flight.landed.done() or flight.begun:
                return
            flight.called_off = True
        # Its loop ends, or there is no thread for it. Whoever waits elsewhere starts it anew.
        self._land(flight, Landing(error=error))

    async def _fly(self, flight: Flight, limiter: anyio.CapacityLimiter | None) -> None:
        if not self.is_async:
            fly = partial(self._fly_here, flight)
            await to_thread.run_sync(fly, abandon_on_cancel=True, limiter=limiter)
            return
        started = time.perf_counter()
        try:
            with self.flights.aboard(flight):
                value = await self.resolve(flight.index)
            if is_light(value):
                landing = _landing_of(value)
            else:
                landing = await to_thread.run_sync(_landing_of, value, abandon_on_cancel=True)
        except asyncio.CancelledError as error:
            if flight.called_off or _is_being_cancelled():
                raise
            landing = Landing(error=_cancelled_itself(flight.index, error))
        except KeyboardInterrupt:
            raise  # ends the loop, and all that waits with it
        except BaseException as error:
            landing = Landing(error=error)
        self._land(flight, landing, time.perf_counter() - started)

    def _fly_here(self, flight: Flight) -> None:
        with self.lock:
            if not flight.begin():
                return
        started = time.perf_counter()
        try:
            with self.flights.aboard(flight):
                value = self.resolve(flight.index)
            if inspect.isawaitable(value):
                raise TypeError(f"row {flight.index} is an awaitable: load it in an `async def`")
            landing = _landing_of(value)
        except KeyboardInterrupt:
            self._land(flight, Landing())  # this thread's alone; others load the row themselves
            raise
        except BaseException as error:
            landing = Landing(error=error)
        self._land(flight, landing, time.perf_counter() - started)

    def _land(self, flight: Flight, landing: Landing, seconds: float = 0.0) -> None:
        given_up: list[Entry] = []
        with self.lock:
            self.flights.remove(flight)
            self.failures += landing.error is not None
            if landing.kept is not None and flight.verdict is None:
                given_up = self._keep(flight, landing)
            nbytes, items = self._held
        del given_up  # after the lock, see `Shelf.put`
        flight.landed.set_result(landing)
        if landing.kept is not None:
            self._reporter.loaded(seconds)
        if flight.verdict == "kept":
            self._reporter.inserted(nbytes=nbytes, items=items, every=self._interval())

    def _keep(self, flight: Flight, landing: Landing) -> list[Entry]:
        index, shelf = flight.index, self.shelf
        if shelf is None or index in shelf.entries:  # somebody has inserted it meanwhile
            flight.verdict = "present"
            return []
        assert landing.kept is not None
        if landing.nbytes is None:
            shelf.refusals += 1
            flight.verdict = "refused"
            return []
        entry = Entry(landing.kept, landing.nbytes)
        return self._put(index, entry, flight)

    def _put(self, index: int, entry: Entry, flight: Flight | None) -> list[Entry]:
        assert self.shelf is not None
        evict = flight is None or flight.demanded
        kept, given_up = self.shelf.put(index, entry, evict=evict)
        if flight is not None:
            refused: Verdict = "full" if self.shelf.could_hold(entry) else "refused"
            flight.verdict = "kept" if kept else refused
        return given_up

    def insert(self, index: int, value: object) -> None:
        """Keep a copy of a value, in the place of any that is kept."""
        try:
            landing = _landing_of(value)
        except Exception:
            _logger.exception("row %d is not kept: it cannot be copied", index)
            landing = Landing()
        given_up: list[Entry] = []
        with self.lock:
            if self.shelf is None:
                return
            refused = self.shelf.refusals
            flight = self.flights.current(index)
            if landing.kept is None or landing.nbytes is None:
                self.shelf.refusals += 1
            else:
                given_up = self._put(index, Entry(landing.kept, landing.nbytes), flight)
            inserted = self.shelf.refusals == refused
            nbytes, items = self._held
        del given_up
        if inserted:
            self._reporter.inserted(nbytes=nbytes, items=items, every=self._interval())

    @property
    def _held(self) -> tuple[int, int]:
        return (0, 0) if self.shelf is None else (self.shelf.nbytes, len(self.shelf.entries))


def _landing_of(value: object) -> Landing:
    try:
        kept = keep(value)
    except Unkeepable as error:
        _logger.warning("a value is not kept: %s", error)
        return Landing(_AsItIs(value))
    return Landing(kept, data_size(kept.make()))


@final
class _AsItIs:
    """A value that cannot be copied: all who wait for it get this one."""

    def __init__(self, value: object) -> None:
        self._value = value

    def make(self) -> Any:
        return self._value


def _value_of(landing: Landing) -> Any:
    """Return a waiter's own value; raises `Gone` where the load has to be started anew."""
    try:
        if landing.error is not None:
            raise landing.error
        if landing.kept is None:
            raise Gone
        return landing.kept.make()
    finally:
        del landing  # an error refers to this frame, which would refer to it


def _verdict_of(flight: Flight, landing: Landing) -> Verdict:
    if landing.error is not None:
        _value_of(landing)
    return flight.verdict or "called off"


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has been closed
        loop.call_soon_threadsafe(task.cancel)


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _cancelled_itself(index: int, cause: BaseException) -> RuntimeError:
    error = RuntimeError(f"the load of row {index} was cancelled by the provider itself")
    error.__cause__ = cause
    return error
