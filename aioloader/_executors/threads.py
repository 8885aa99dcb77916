"""The thread executor: rows filled by one thread of this process (``num_workers=0``)."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING, final

import anyio

from aioloader._executors.arming import arm
from aioloader._executors.failures import Failure
from aioloader._executors.recipes import BEAT, RowFailed, fill_rows, fill_spans
from aioloader._executors.watch import Watch
from aioloader._memory.layout import RowViews
from aioloader._memory.segment import PrivateSegment
from aioloader.errors import ItemError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioloader.protocols import Filled, Segment, Slot, Work

__all__ = ["ThreadExecutor"]

_LEAVE_SECONDS = 0.15


class _Abandoned(BaseException):
    """Nobody waits for this job any more."""


@final
class _Job:
    """One `fill`, run by the thread, waited for on the loop."""

    def __init__(self, run: Callable[[Callable[[int], None]], Filled]) -> None:
        self._run = run
        self._loop = asyncio.get_running_loop()
        self.done = anyio.Event()
        self.abandoned = False
        self.filled: Filled | None = None
        self.failure: tuple[int, Failure] | None = None
        self.row = -1
        self.beat = 0

    def mark(self, row: int) -> None:
        if self.abandoned:
            raise _Abandoned
        self.row = row % BEAT
        self.beat += 1

    def run(self) -> None:
        try:
            self.beat += 1
            self.filled = self._run(self.mark)
        except _Abandoned:
            return
        except RowFailed as failed:
            self.failure = (failed.row, Failure.capture(failed.error))
        except BaseException as error:
            self.failure = (max(self.row, 0), Failure.capture(error))
        finally:
            del self._run  # it holds views of the slot
        self._report()

    def reject(self, failure: Failure) -> None:
        self.failure = (0, failure)
        self._report()

    def _report(self) -> None:
        if not self.abandoned:
            _call_soon(self._loop, self.done.set)


_Jobs = queue.SimpleQueue[_Job | None]


@final
class _Thread:
    """A daemon thread: a `load` that never returns must not keep the program from ending."""

    def __init__(self, jobs: _Jobs, startup: Callable[[], object] | None) -> None:
        self._jobs = jobs
        self._startup = startup
        self.retired = False
        self._loop = asyncio.get_running_loop()
        self.ended = anyio.Event()
        threading.Thread(target=self._serve, name="aioloader-load", daemon=True).start()

    def _serve(self) -> None:
        failure = None if self._startup is None else _run_startup(self._startup)
        while (job := self._jobs.get()) is not None:
            if failure is None:
                job.run()
            else:
                job.reject(failure)
            del job  # it would keep the slot on loan until the next one comes
            if self.retired:
                break
        _call_soon(self._loop, self.ended.set)


def _run_startup(startup: Callable[[], object]) -> Failure | None:
    try:
        startup()
    except BaseException as error:
        return Failure.capture(error)
    return None


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has been closed
        loop.call_soon_threadsafe(function)


@final
class ThreadExecutor:
    """Fill rows in one thread (see :class:`aioloader.protocols.Executor`).

    A thread cannot be ended from outside: when an item does not return, the executor lets
    the thread go, with the slot that it may still write to, and works on in a new one.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._load = arm(work.load, "load")
        self._fill = fill_spans if work.vectorized else fill_rows
        self._thread: _Thread | None = None

    def __repr__(self) -> str:
        return f"<ThreadExecutor: {'running' if self._thread else 'not running'}>"

    def allocate(self, nbytes: int) -> Segment:
        """Allocate private memory."""
        return PrivateSegment(nbytes)

    async def __aenter__(self) -> ThreadExecutor:
        self._jobs: _Jobs = queue.SimpleQueue()
        self._thread = _Thread(self._jobs, self._work.startup)
        return self

    async def __aexit__(self, *exc: object) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            with anyio.move_on_after(_LEAVE_SECONDS, shield=True):
                await thread.ended.wait()

    async def fill(
        self,
        slot: Slot,
        rows: Sequence[int],
        items: Sequence[object],
        seeds: Sequence[int | None],
    ) -> Filled:
        """Fill ``rows`` of ``slot``; see the protocol."""
        assert self._thread is not None
        fill, views, retries = self._fill, RowViews(slot.arrays), self._work.retries

        def run(mark: Callable[[int], None]) -> Filled:
            return fill(self._load, views, rows, items, seeds, mark, retries)

        job = _Job(run)
        self._jobs.put(job)
        try:
            await self._wait(job)
        finally:
            job.abandoned = not job.done.is_set()
        if job.failure is not None:
            row, failure = job.failure
            raise failure.to_item_error(row)
        assert job.filled is not None
        return job.filled

    async def _wait(self, job: _Job) -> None:
        limit = self._work.item_timeout
        if limit is None:
            await job.done.wait()
            return
        watch = Watch(limit, limit * 0.4)
        while not job.done.is_set():
            with anyio.move_on_after(limit / 5):
                await job.done.wait()
            sign = (job.row, job.beat) if job.beat else None
            if not job.done.is_set() and watch.overdue(time.monotonic(), [sign]):
                self._replace_thread()
                raise _too_slow(limit, job.row)

    def _replace_thread(self) -> None:
        assert self._thread is not None
        # The new thread takes over the queue; the old one ends with the item it is at.
        self._thread.retired = True
        self._thread = _Thread(self._jobs, self._work.startup)


def _too_slow(limit: float, row: int) -> ItemError:
    message = f"the item was not loaded within item_timeout={limit:g} s"
    error = ItemError(message, row=max(row, 0))
    error.__cause__ = TimeoutError(message)
    return error
