"""The thread executor: rows filled by threads of this process; one if ``num_workers=0``."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import queue
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

import anyio

from aioloader._executors.arming import arm
from aioloader._executors.chunks import RowCost, cut
from aioloader._executors.failures import Failure
from aioloader._executors.jobs import Job
from aioloader._executors.limits import refusal
from aioloader._executors.recipes import BEAT, RowFailed, fill_rows, fill_spans
from aioloader._executors.watch import Watch
from aioloader._memory.layout import RowViews
from aioloader._memory.segment import PrivateSegment
from aioloader.errors import ItemError
from aioloader.protocols import Filled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioloader.protocols import Segment, Slot, Work

__all__ = ["ThreadExecutor"]

_LEAVE_SECONDS = 0.15


class _Abandoned(BaseException):
    """Nobody waits for this chunk any more."""


@final
class _Fill:
    """One `fill`, cut into chunks: the loop hears of it once, when the last of them has ended."""

    def __init__(self, job: Job, chunks: int, settle: Callable[[_Fill], None]) -> None:
        self.job = job
        self.ended: list[_Chunk] = []
        self._left = chunks
        self._settle = settle
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()

    def end(self, chunk: _Chunk, outcome: Filled | ItemError | None) -> None:
        """Take what has become of a chunk, from any thread; only the first word counts."""
        with self._lock:
            if chunk.fill is None:
                return
            chunk.fill, chunk.outcome = None, outcome
            self.ended.append(chunk)
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            _call_soon(self._loop, self._settle, self)


@final
class _Chunk:
    """Rows for one thread. The slot is kept on loan until that thread has released it."""

    __slots__ = ("fill", "given", "hold", "number", "outcome", "row", "rows", "start", "stop")

    def __init__(
        self, number: int, fill: _Fill, start: int, rows: Sequence[int], hold: object, *given: Any
    ) -> None:
        self.number = number
        self.fill: _Fill | None = fill
        self.start, self.stop = start, start + len(rows)
        self.rows = rows
        self.row = -1  # where its thread is; `BEAT` s on top are signs of life
        self.hold: object = hold
        self.given = given
        self.outcome: Filled | ItemError | None = None

    def __setitem__(self, place: int, row: int) -> None:  # it is the recipe's `Progress`
        fill = self.fill
        if fill is None or fill.job.abandoned:  # nobody waits for it any more
            raise _Abandoned
        self.row = row

    def release(self) -> None:
        """Let go of the slot."""
        self.given, self.hold = (), None

    def end(self, outcome: Filled | ItemError | None) -> None:
        """Say what has become of it; None if nobody wanted it any more."""
        fill = self.fill
        if fill is not None:
            fill.end(self, outcome)


_Queue = queue.SimpleQueue[_Chunk | None]


@final
class _Thread:
    """A daemon thread: a `load` that never returns must not keep the program from ending."""

    def __init__(self, chunks: _Queue, work: Work) -> None:
        self._chunks = chunks
        self._work = work
        self._fill = fill_spans if work.vectorized else fill_rows
        self._loop = asyncio.get_running_loop()
        self.chunk: _Chunk | None = None
        self.retired = False
        self.ended = asyncio.Event()
        try:
            threading.Thread(target=self._serve, name="aioloader-load", daemon=True).start()
        except RuntimeError as error:
            raise refusal(errno.EAGAIN, "a thread for loading") from error

    def _serve(self) -> None:
        startup = self._work.startup
        failure = None if startup is None else _run_startup(startup)
        while (chunk := self._chunks.get()) is not None:
            self.chunk = chunk
            outcome = self._run(chunk) if failure is None else failure.to_item_error(0)
            chunk.release()
            chunk.end(outcome)
            del chunk, outcome
            self.chunk = None
            if self.retired:
                break
        _call_soon(self._loop, self.ended.set)

    def _run(self, chunk: _Chunk) -> Filled | ItemError | None:
        load, retries = self._work.load, self._work.retries
        views, items, seeds = chunk.given
        try:
            return self._fill(load, views, chunk.rows, items, seeds, chunk, retries)
        except _Abandoned:
            return None
        except RowFailed as failed:
            return Failure.capture(failed.error).to_item_error(failed.row)
        except BaseException as error:
            row = chunk.row % BEAT if chunk.row >= 0 else chunk.rows[0]
            return Failure.capture(error).to_item_error(row)


def _run_startup(startup: Callable[[], object]) -> Failure | None:
    try:
        startup()
    except BaseException as error:
        return Failure.capture(error)
    return None


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has been closed
        loop.call_soon_threadsafe(function, *args)


@final
class ThreadExecutor:
    """Fill rows in threads of this process (see :class:`aioloader.protocols.Executor`).

    There are ``num_workers`` of them, one for 0. Give it as ``executor=`` where ``load`` waits,
    or lets go of the GIL, and may be called by several threads at once: threads start in no
    time, need no memory, and take their work without messages. ``startup`` is called in each.
    A thread cannot be ended from outside: when an item does not return, the executor lets
    the thread go, with the slot that it may still write to, and works on in a new one.

    >>> import aioloader
    >>> def load(item, arrays, seed):
    ...     arrays["x"][...] = item
    >>> group = aioloader.DataGroup(4, range(8), loader_arrays={"x": ((), "int32", "int32")})
    >>> async def main():
    ...     threads = {"num_workers": 2, "executor": aioloader.ThreadExecutor}
    ...     async with aioloader.Loader(load, group, end_at=("epoch", 1), **threads) as loader:
    ...         return [batch.arrays["x"].tolist() async for batch in loader]
    >>> aioloader.run(main())
    [[0, 1, 2, 3], [4, 5, 6, 7]]
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._armed = replace(work, load=arm(work.load, "load"))
        self._count = max(1, work.num_workers)
        self._threads: list[_Thread] = []
        self._chunks: _Queue = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._cost = RowCost()
        self._pending = 0
        self._alone: asyncio.TimerHandle | None = None  # set while the first fill has no company
        self._held: list[tuple[Any, ...]] = []
        self._is_new = True
        self._timer: asyncio.TimerHandle | None = None
        limit = work.item_timeout
        self._tick = 0.0 if limit is None else limit / 5
        self._watch = None if limit is None else Watch(limit, self._tick * 2)

    def __repr__(self) -> str:
        return f"<ThreadExecutor: {len(self._threads)} threads, {self._pending} chunks pending>"

    def allocate(self, nbytes: int) -> Segment:
        """Allocate private memory."""
        return PrivateSegment(nbytes)

    async def __aenter__(self) -> ThreadExecutor:
        try:
            for _ in range(self._count):
                self._threads.append(_Thread(self._chunks, self._armed))
        except BaseException:
            self._dismiss()
            raise
        if self._watch is not None:
            self._timer = asyncio.get_running_loop().call_later(self._tick, self._look)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        threads = self._dismiss()
        with anyio.move_on_after(_LEAVE_SECONDS, shield=True):
            for thread in threads:
                await thread.ended.wait()

    async def fill(
        self,
        slot: Slot,
        rows: Sequence[int],
        items: Sequence[object],
        seeds: Sequence[int | None],
    ) -> Filled:
        """Fill ``rows`` of ``slot``; see the protocol."""
        if not rows:
            return Filled()
        return await self._begin(Job(len(rows)), slot, rows, items, seeds).wait()

    def begin_fill(
        self,
        slot: Slot,
        rows: Sequence[int],
        items: Sequence[object],
        seeds: Sequence[int | None],
        on_done: Callable[[], object],
    ) -> Job:
        """Do what `fill` does without waiting: ``on_done`` is called once there is a result."""
        return self._begin(Job(len(rows), on_done), slot, rows, items, seeds)

    def _begin(self, job: Job, *given: Any) -> Job:
        assert self._threads
        if self._alone is not None:
            self._held.append((job, *given))
            return job
        if self._is_new:
            # Threads that compute would keep the lock from the loop until they have done all that
            # there is for them: so the first batch goes ahead, for as long as threads may do that.
            self._is_new = False
            loop = asyncio.get_running_loop()
            self._alone = loop.call_later(sys.getswitchinterval(), self._go_on)
        self._start(job, *given)
        return job

    def _go_on(self) -> None:
        """Have the threads do what has come behind the first fill; harmless to repeat."""
        if self._alone is not None:
            self._alone.cancel()
            self._alone = None
        held, self._held = self._held, []
        for job, *given in held:
            if job.abandoned:
                continue
            try:
                self._start(job, *given)
            except Exception as error:  # who began it has gone on
                _slot, rows, *_rest = given
                job.expect(1)
                job.fail(Failure.capture(error).to_item_error(rows[0]))

    def _start(
        self, job: Job, slot: Slot, rows: Sequence[int], items: Sequence[object], seeds: Any
    ) -> None:
        spans = [(0, len(rows))]
        if self._count > 1:  # somebody is there to share it with
            spans = cut(len(rows), self._count, self._cost.seconds, waiting=self._pending)
        fill = _Fill(job, len(spans), self._settle)
        views = RowViews(slot.arrays, 0)  # of this loan: they keep it
        chunks = []
        for start, stop in spans:
            mine, given = rows, (views, items, seeds)
            if len(spans) > 1:
                mine, given = rows[start:stop], (views, items[start:stop], seeds[start:stop])
            number = next(self._numbers)
            chunks.append(_Chunk(number, fill, start, mine, slot.hold, *given))
        job.expect(len(chunks))
        self._pending += len(chunks)
        for chunk in chunks:
            self._chunks.put(chunk)

    def _settle(self, fill: _Fill) -> None:
        self._pending -= len(fill.ended)
        try:
            for chunk in fill.ended:
                if isinstance(chunk.outcome, Filled):
                    self._cost.add(len(chunk.rows), chunk.outcome.seconds)
                    fill.job.finish(chunk, chunk.outcome)
                elif chunk.outcome is not None:
                    fill.job.fail(chunk.outcome)
        finally:
            if self._alone is not None:
                self._go_on()

    def _look(self) -> None:
        assert self._watch is not None
        self._timer = asyncio.get_running_loop().call_later(self._tick, self._look)
        chunks = [thread.chunk for thread in self._threads]
        rows = [-1 if chunk is None else chunk.row for chunk in chunks]
        signs = [
            None if chunk is None else (chunk.number, row)
            for chunk, row in zip(chunks, rows, strict=True)
        ]
        for index in self._watch.overdue(time.monotonic(), signs):
            chunk, row = chunks[index], rows[index]
            self._replace(index)
            if chunk is not None:
                chunk.end(_too_slow(self._work.item_timeout, chunk.rows[0] if row < 0 else row))

    def _replace(self, index: int) -> None:
        late = self._threads[index]
        with contextlib.suppress(OSError):  # then the late one goes on, whenever it returns
            self._threads[index] = _Thread(self._chunks, self._armed)
            late.retired = True  # it ends with the item that it is at

    def _dismiss(self) -> list[_Thread]:
        if self._alone is not None:
            self._alone.cancel()
        self._held.clear()
        threads, self._threads = self._threads, []
        for _ in threads:
            self._chunks.put(None)
        return threads


def _too_slow(limit: float | None, row: int) -> ItemError:
    message = f"the item was not loaded within item_timeout={limit:g} s"
    error = ItemError(message, row=row % BEAT)
    error.__cause__ = TimeoutError(message)
    return error
