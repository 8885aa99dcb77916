"""Ahead: calls of coroutine functions under way on a loop, and what came of them, in order."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING, Any, final

from aioloader._datasets.requests import Bell

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aioloader._datasets.room import Room

__all__ = ["Ahead", "Call"]

_TURN_SECONDS = 0.001


@final
class Call:
    """One element on its way; ``position`` is that behind it."""

    __slots__ = ("done", "element", "error", "is_last", "position", "value")

    def __init__(self, element: Any = None, position: Any = None) -> None:
        self.element = element
        self.position = position
        self.value: Any = None
        self.error: BaseException | None = None
        self.done = False
        self.is_last = False


@final
class Ahead:
    """Awaits ``call(element)`` for what ``draw()`` returns, up to ``width`` at once.

    ``draw`` is awaited for one element at a time, and returns a `Call`. It does so while there
    is `Room`, or while the consumer waits. The tasks that do it belong to ``loop``; `take` and
    `stop` may be called in any thread.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        draw: Callable[[], Awaitable[Call]],
        call: Callable[[Any], Awaitable[Any]],
        width: int,
        room: Room,
    ) -> None:
        self.bell = Bell()
        self.stopped = False
        self._loop = loop
        self._draw = draw
        self._call = call
        self._width = max(width, 1)
        self._room = room
        self._belt: deque[Call] = deque()
        self._wanted = False
        self._starved = False
        self._ended = False
        self._space = asyncio.Event()
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        loop.call_soon_threadsafe(self._spawn)

    def __repr__(self) -> str:
        return f"<Ahead: {len(self._tasks)} tasks, {len(self._belt)} elements>"

    def take(self) -> Call | None:
        """Take the next element that is done; None says that it has to be waited for."""
        if self._belt and self._belt[0].done:
            self._wanted = False
            call = self._belt.popleft()
            if call.error is None and not call.is_last:
                self._room.measure(call.value)
        else:
            self._wanted = True
            call = None
            if self._belt and self._belt[0].done:  # just before it was known to be waited for
                self.bell.ring()
        if self._starved:
            self._soon(self._space.set)
        return call

    def stop(self) -> None:
        """Have the tasks end, without waiting for them."""
        self.stopped = True
        self._belt.clear()
        self._soon(self._cancel)
        self.bell.ring()

    async def wait_ended(self, seconds: float) -> None:
        """Wait until the tasks have ended, if they are of this loop, and at most so long."""
        if self._tasks and asyncio.get_running_loop() is self._loop:
            await asyncio.wait(set(self._tasks), timeout=seconds)

    def _soon(self, function: Callable[[], Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, with all that ran in it
            self._loop.call_soon_threadsafe(function)

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _spawn(self) -> None:
        if not self.stopped:
            task = self._loop.create_task(self._work(), name="aioloader-ahead")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self) -> None:
        since = time.perf_counter()
        while (call := await self._begin()) is not None:
            if len(self._tasks) < self._width and not self._ended:
                self._spawn()
            if not call.done:
                try:
                    call.value = await self._call(call.element)
                except Exception as error:
                    call.error = error
                call.done = True
                call.element = None
            if self._wanted and self._belt and self._belt[0] is call:
                self.bell.ring()
            del call
            if time.perf_counter() - since > _TURN_SECONDS:  # calls need not have waited
                await asyncio.sleep(0)
                since = time.perf_counter()

    async def _begin(self) -> Call | None:
        async with self._turn:
            if self._ended:
                return None
            while len(self._belt) >= max(self._room.limit, self._wanted):
                self._space.clear()
                self._starved = True
                if len(self._belt) >= max(self._room.limit, self._wanted):
                    await self._space.wait()
                self._starved = False
            call = await self._draw()
            self._ended = call.is_last
            self._belt.append(call)
            return call
