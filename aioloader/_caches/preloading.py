"""Preloading: rows loaded ahead of demand, as many at once as there are workers.

A run knows nothing of the cache whose rows it hands out, so that a thread that works on it does
not keep that cache alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
import traceback
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, final

import anyio

if TYPE_CHECKING:
    import weakref

__all__ = [
    "Gate",
    "PreloadProgress",
    "PreloadRun",
    "Preloadable",
    "Verdict",
    "preload_here",
    "preload_in_thread",
]

State = Literal["idle", "running", "done", "full", "stopped"]
Verdict = Literal["kept", "present", "full", "refused", "called off"]

_logger = logging.getLogger("aioloader.cache")
_NAMED_ROWS = 100


@final
@dataclass(frozen=True, slots=True)
class PreloadProgress:
    """How far preloading has come.

    ``state`` is ``"idle"`` before it begins, ``"full"`` when it stopped because there was no
    room for a row, ``"stopped"`` when the cache was closed before its end. Of ``total`` rows,
    ``kept`` were loaded and kept, ``present`` were there or on their way already, ``refused``
    were loaded and not kept, and ``failed`` raised; ``failed_rows`` are the first hundred.
    """

    state: State = "idle"
    total: int = 0
    kept: int = 0
    present: int = 0
    refused: int = 0
    failed: int = 0
    failed_rows: tuple[int, ...] = ()
    seconds: float = 0.0


@final
class Gate:
    """Where preloading waits for those who wait for a row.

    Only for those who came before it: it would never get anywhere beside a consumer that asks
    for the next row as soon as it has one, or for many at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._inside: set[int] = set()
        self._waiting: list[tuple[set[int], Future[None]]] = []

    @property
    def demand(self) -> int:
        """How many wait for a row."""
        return len(self._inside)

    def enter(self) -> int:
        """Note that somebody waits for a row; returns the number to leave with."""
        with self._lock:
            number = next(self._numbers)
            self._inside.add(number)
            return number

    def leave(self, number: int) -> None:
        """Note that somebody has it, or waits no longer."""
        with self._lock:
            self._inside.discard(number)
            for before, _ in self._waiting:
                before.discard(number)
            free = [future for before, future in self._waiting if not before]
            self._waiting = [entry for entry in self._waiting if entry[0]]
        for future in free:
            future.set_result(None)

    def quiet(self) -> Future[None] | None:
        """Return what ends when nobody waits any more who waits now; None if nobody does."""
        with self._lock:
            if not self._inside:
                return None
            waiting: Future[None] = Future()
            waiting.set_running_or_notify_cancel()
            self._waiting.append(({*self._inside}, waiting))
            return waiting

    def wake(self) -> None:
        """Have whoever waits go on."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            future.set_result(None)


@final
class PreloadRun:
    """One run over all rows: hands them out, and counts what became of them. Thread-safe."""

    def __init__(self, total: int, gate: Gate, logging_interval: int) -> None:
        self._lock = threading.Lock()
        self._gate = gate
        self._logging_interval = logging_interval
        self._next = 0
        self._total = total
        self._state: State = "running"
        self._counts: dict[str, int] = {}
        self._failed_rows: list[int] = []
        self._started = time.perf_counter()
        self._seconds: float | None = None
        self.error: BaseException | None = None
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()

    @property
    def is_running(self) -> bool:
        """Whether rows are still handed out."""
        return self._state == "running"

    @property
    def progress(self) -> PreloadProgress:
        """How far it has come."""
        counts = self._counts
        seconds = self._seconds
        return PreloadProgress(
            state=self._state,
            total=self._total,
            kept=counts.get("kept", 0),
            present=counts.get("present", 0),
            refused=counts.get("refused", 0) + counts.get("full", 0),
            failed=counts.get("failed", 0),
            failed_rows=tuple(self._failed_rows),
            seconds=time.perf_counter() - self._started if seconds is None else seconds,
        )

    def take(self) -> int | None:
        """Return the next row, after those who wait for one have it; None at the end. Blocks."""
        if self.is_running and (waiting := self._gate.quiet()) is not None:
            waiting.result()
        return self._take()

    async def take_async(self) -> int | None:
        """Return the next row, after those who wait for one have it; None at the end."""
        if self.is_running and (waiting := self._gate.quiet()) is not None:
            await asyncio.wrap_future(waiting)
        return self._take()

    def _take(self) -> int | None:
        with self._lock:
            if not self.is_running or self._next == self._total:
                return None
            self._next += 1
            return self._next - 1

    def note(self, verdict: Verdict) -> None:
        """Count what became of a row."""
        with self._lock:
            self._counts[verdict] = self._counts.get(verdict, 0) + 1
            if verdict == "full" and self.is_running:
                self._state = "full"
        self._log()

    def fail(self, index: int, error: BaseException) -> None:
        """Count a row that raised, and remember the first of them."""
        traceback.clear_frames(error.__traceback__)  # they refer to the cache, and to rows
        with self._lock:
            self._counts["failed"] = self._counts.get("failed", 0) + 1
            if self.error is None:
                self.error = error
            if len(self._failed_rows) < _NAMED_ROWS:
                self._failed_rows.append(index)
        _logger.warning("row %d could not be preloaded: %r", index, error)
        self._log()

    def _log(self) -> None:
        if sum(self._counts.values()) % self._logging_interval == 0:
            _logger.info("preloading: %s", self.progress)

    def halt(self) -> None:
        """Hand out no more rows. Takes no lock, so that a garbage collector may call it."""
        if self._state == "running":
            self._state = "stopped"

    def stop(self) -> None:
        """Hand out no more rows, and tell those who wait for one."""
        self.halt()
        self._gate.wake()

    def end(self) -> None:
        """Stop the clock: all workers have ended."""
        if self._state == "running":
            # Rows under way when it was cancelled are counted nowhere.
            self._state = "done" if sum(self._counts.values()) == self._total else "stopped"
        self._seconds = time.perf_counter() - self._started
        _logger.info("preloading ended: %s", self.progress)
        if not self.ended.done():
            self.ended.set_result(None)

    def raise_first_error(self) -> None:
        """Raise the first error, if there was one, with how many there were."""
        error, progress = self.error, self.progress
        if error is None:
            return
        more = "" if progress.failed <= len(progress.failed_rows) else " and more"
        rows = ", ".join(map(str, progress.failed_rows)) + more
        note = f"{progress.failed} of {progress.total} rows could not be preloaded: {rows}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        try:
            raise error
        finally:
            del error  # or this frame, which it refers to, would keep it


class Preloadable(Protocol):
    """A cache, as those who preload it see it."""

    def preload_row(self, index: int) -> Verdict:
        """Load a row in this thread, and keep it."""

    async def preload_row_async(self, index: int, limiter: anyio.CapacityLimiter) -> Verdict:
        """Load a row from the event loop, in a thread that the limiter allows, and keep it."""


def preload_in_thread(
    run: PreloadRun, owner: weakref.ref[Preloadable], workers: int, is_async: bool
) -> None:
    """Work on a run, in this thread and others, or on an event loop of its own."""
    try:
        if is_async:
            with asyncio.Runner() as runner:
                runner.run(_preload_together(run, owner, workers))
            return
        helpers = [
            threading.Thread(
                target=_work, args=(run, owner), name=f"aioloader-preload-{k}", daemon=True
            )
            for k in range(1, workers)
        ]
        for helper in helpers:
            with contextlib.suppress(RuntimeError):  # can't start new thread: fewer will do
                helper.start()
        _work(run, owner)
        for helper in helpers:
            if helper.ident is not None:
                helper.join()
    finally:
        run.end()


async def preload_here(run: PreloadRun, owner: weakref.ref[Preloadable], workers: int) -> None:
    """Work on a run, on this event loop."""
    try:
        await _preload_together(run, owner, workers)
    finally:
        run.end()


async def _preload_together(run: PreloadRun, owner: weakref.ref[Preloadable], workers: int) -> None:
    limiter = anyio.CapacityLimiter(workers)
    async with anyio.create_task_group() as group:
        for _ in range(workers):
            group.start_soon(_work_async, run, owner, limiter)


def _work(run: PreloadRun, owner: weakref.ref[Preloadable]) -> None:
    while (index := run.take()) is not None:
        try:
            verdict = _preload(owner, index)
        except BaseException as error:
            run.fail(index, error)
        else:
            run.note(verdict)


def _preload(owner: weakref.ref[Preloadable], index: int) -> Verdict:
    # In a function of its own: between two rows nothing may refer to the cache.
    cache = owner()
    return "called off" if cache is None else cache.preload_row(index)


async def _work_async(
    run: PreloadRun, owner: weakref.ref[Preloadable], limiter: anyio.CapacityLimiter
) -> None:
    while (index := await run.take_async()) is not None:
        try:
            verdict = await _preload_async(owner, index, limiter)
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:
            run.fail(index, error)
        else:
            run.note(verdict)


async def _preload_async(
    owner: weakref.ref[Preloadable], index: int, limiter: anyio.CapacityLimiter
) -> Verdict:
    cache = owner()
    return "called off" if cache is None else await cache.preload_row_async(index, limiter)
