"""Coroutines: rows filled on the event loop, many at once, for items that are waited for."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, final

import anyio
import anyio.lowlevel

from aioloader._executors.arming import arm
from aioloader._executors.failures import Failure
from aioloader._executors.later import later
from aioloader._executors.recipes import Columns, backoff_seconds, spans
from aioloader._memory.layout import RowViews
from aioloader._memory.segment import PrivateSegment
from aioloader.protocols import Arrays, Filled, Segment, Slot, Work

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from aioloader.errors import ItemError

__all__ = ["Calls", "CoroutineExecutor", "Swarm"]


_TURN_SECONDS = 0.5e-3


@final
class Calls:
    """A run of calls for a `Swarm`: made in order, several at once, each result handed over.

    The first failure stops the calls that have not begun; those before it finish, so that
    the failure reported is always that of the first row that fails.
    """

    def __init__(
        self,
        function: Callable[..., Awaitable[Any]],
        arguments: Iterable[tuple[int, tuple[Any, ...]]],
        take: Callable[[int, Any], None],
        *,
        retries: int = 0,
        timeout: float | None = None,
        timeout_name: str = "item_timeout",
    ) -> None:
        self._function = function
        self._arguments: Iterator[tuple[int, tuple[Any, ...]]] | None = iter(arguments)
        self._take = take
        self._retries = retries
        self._timeout = timeout
        self._timeout_name = timeout_name
        self._running = 0
        self._errors: list[ItemError] = []
        self.done = anyio.Event()
        self.seconds = 0.0
        self.retried = 0

    def next(self) -> tuple[int, tuple[Any, ...]] | None:
        """Return the next call to make, or None when there is none left."""
        call = None
        try:
            call = None if self._arguments is None else next(self._arguments, None)
        except Exception as error:  # what yields the arguments may be a user's
            self._errors.append(Failure.capture(error).to_item_error(0))
        if call is None:
            self.stop()
        else:
            self._running += 1
        return call

    def stop(self) -> None:
        """Begin no more calls."""
        self._arguments = None
        self._settle()

    def raise_first(self) -> None:
        """Raise the error of the first row that failed, if any did."""
        if self._errors:
            raise min(self._errors, key=lambda error: error.row)

    async def make(self, row: int, arguments: tuple[Any, ...], closing: Callable[[], bool]) -> None:
        """Make one call, with its retries, and hand over what came of it."""
        started = time.perf_counter()
        try:
            self._take(row, await self._attempt(arguments))
        except BaseException as error:
            # A cancellation that is not the swarm's own came out of the user's code. An error is
            # one of its row also where the swarm is closing: nobody waits for it, and it must not
            # come out of the leaving.
            cancelled = closing() and not isinstance(error, Exception)
            if cancelled or isinstance(error, KeyboardInterrupt):
                raise
            self._errors.append(Failure.capture(error).to_item_error(row))
            self._arguments = None
        finally:
            self.seconds += time.perf_counter() - started
            self._running -= 1
            self._settle()

    async def _attempt(self, arguments: tuple[Any, ...]) -> Any:
        for attempt in range(self._retries + 1):
            try:
                return await self._once(arguments)
            except Exception:
                if attempt == self._retries:
                    raise
            self.retried += 1
            await anyio.sleep(backoff_seconds(attempt + 1))
        raise AssertionError("not reached")

    async def _once(self, arguments: tuple[Any, ...]) -> Any:
        if self._timeout is None:
            return await self._function(*arguments)
        with anyio.move_on_after(self._timeout) as scope:
            return await self._function(*arguments)
        assert scope.cancelled_caught
        raise TimeoutError(
            f"the item was not loaded within {self._timeout_name}={self._timeout:g} s"
        )

    def _settle(self) -> None:
        if self._arguments is None and self._running == 0:
            self.done.set()


@final
class Swarm:
    """Makes `Calls`, at most ``limit`` at once over all of them, first come first served."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queue: deque[Calls] = deque()
        self._running = 0
        self._idle: list[asyncio.Future[None]] = []
        self._group: TaskGroup | None = None

    @property
    def running(self) -> int:
        """How many calls are under way."""
        return self._running

    async def __aenter__(self) -> Self:
        self._group = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        group, self._group = self._group, None
        if group is not None:
            self._queue.clear()
            self._idle.clear()
            group.cancel_scope.cancel()
            await group.__aexit__(None, None, None)

    async def run(self, calls: Calls) -> None:
        """Make ``calls``; when this is cancelled, no more of them begin."""
        self.begin(calls)
        try:
            await calls.done.wait()
        finally:
            calls.stop()
        calls.raise_first()

    def begin(self, calls: Calls) -> None:
        """Queue ``calls`` without waiting for them."""
        assert self._group is not None
        self._queue.append(calls)
        # Each task goes on to the next call when it is done with one, and waits where there is
        # none: a task for each call would cost more than many calls do. One at a time is woken
        # while there is more.
        self._wake()

    def _wake(self) -> None:
        if self._group is None or self._running >= self._limit or not self._queue:
            return
        self._running += 1
        while self._idle:
            turn = self._idle.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._group.start_soon(later(self._serve), self._group.cancel_scope)

    async def _serve(self, scope: anyio.CancelScope) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self._work(lambda: scope.cancel_called)
            finally:
                self._running -= 1
            turn: asyncio.Future[None] = loop.create_future()
            self._idle.append(turn)
            await turn

    async def _work(self, closing: Callable[[], bool]) -> None:
        turn = time.perf_counter()
        while True:
            if time.perf_counter() - turn > _TURN_SECONDS:
                await anyio.lowlevel.checkpoint()  # calls that never wait must not add up
                turn = time.perf_counter()
            found = self._next()  # not before that: another task would overtake it
            if found is None:
                return
            self._wake()
            calls, row, arguments = found
            await calls.make(row, arguments, closing)

    def _next(self) -> tuple[Calls, int, tuple[Any, ...]] | None:
        while self._queue:
            calls = self._queue[0]
            call = calls.next()
            if call is not None:
                return calls, *call
            self._queue.popleft()
        return None


@final
class CoroutineExecutor:
    """Fill rows by a coroutine function (see :class:`aioloader.protocols.Executor`)."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._load = arm(work.load, "coroutine")
        self._swarm = Swarm(work.max_concurrency)

    def __repr__(self) -> str:
        return f"<CoroutineExecutor: {self._swarm.running} items under way>"

    def allocate(self, nbytes: int) -> Segment:
        """Allocate private memory."""
        return PrivateSegment(nbytes)

    async def __aenter__(self) -> CoroutineExecutor:
        if self._work.startup is not None:
            started = self._work.startup()
            if inspect.isawaitable(started):
                await started
        await self._swarm.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._swarm.__aexit__(*exc)

    async def fill(
        self,
        slot: Slot,
        rows: Sequence[int],
        items: Sequence[object],
        seeds: Sequence[int | None],
    ) -> Filled:
        """Fill ``rows`` of ``slot``; see the protocol."""
        columns = Columns(len(rows))
        views = RowViews(slot.arrays)
        work = self._work
        if work.vectorized:
            arguments = _by_span(views, rows, items, seeds)
            ranges = {rows[a]: range(a, b) for a, b in spans(rows)}

            def take(row: int, returned: Any) -> None:
                columns.put_many(ranges[row], returned)
        else:
            arguments = _by_row(views, rows, items, seeds)
            positions = _positions(rows)

            def take(row: int, returned: Any) -> None:
                if returned is not None:
                    columns.put(positions(row), returned)

        calls = Calls(self._load, arguments, take, retries=work.retries, timeout=work.item_timeout)
        await self._swarm.run(calls)
        return Filled(columns.result(), calls.seconds, calls.retried)


_Arguments = Iterator[tuple[int, tuple[object, Arrays, object]]]


def _by_row(
    views: RowViews, rows: Sequence[int], items: Sequence[object], seeds: Sequence[int | None]
) -> _Arguments:
    for row, item, seed in zip(rows, items, seeds, strict=True):
        yield row, (item, views.row(row), seed)


def _by_span(
    views: RowViews, rows: Sequence[int], items: Sequence[object], seeds: Sequence[int | None]
) -> _Arguments:
    for a, b in spans(rows):
        start = rows[a]
        yield start, (items[a:b], views.span(start, start + b - a), list(seeds[a:b]))


def _positions(rows: Sequence[int]) -> Callable[[int], int]:
    if isinstance(rows, range) and rows.step == 1:
        return lambda row: row - rows.start
    return {row: position for position, row in enumerate(rows)}.__getitem__
