"""Iterators over placed elements: in the consumer's thread, or from a thread or a task."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import threading
import time
import weakref
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

import anyio

from aioloader._device.belt import LAST, Bell, Belt, LoopBell, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioloader._device.sources import AsyncSource, Source

__all__ = ["Direct", "FromTask", "FromThread", "FromThreadAsync"]

T = TypeVar("T")

_LEAVE_SECONDS = 1.0
_TURNS = 4


@final
class Direct(Iterator[T]):
    """Draws in the thread that asks, and when it asks."""

    def __init__(self, source: Source[T]) -> None:
        self._source = source
        self._closing = _finalizer(self, source.close)

    def __next__(self) -> T:
        outcome = self._source.draw() if self._closing.alive else LAST
        if outcome.is_last:
            self.close()
            raise StopIteration
        try:
            return outcome.unwrap()
        finally:
            del outcome  # an error would refer to itself

    def close(self) -> None:
        """Close what is iterated over; harmless to repeat."""
        self._closing()


@final
class FromThread(Iterator[T]):
    """Has a thread draw up to ``room`` elements ahead."""

    def __init__(self, source: Source[T], room: int, name: str) -> None:
        heard, self._bell = Bell(), Bell()
        self._belt: Belt[T] = Belt(room, heard.ring, self._bell.ring)
        self._producer = _Producer(source, self._belt, heard, name)
        self._turn = threading.Lock()
        self._closing = _finalizer(self, self._belt.stop)

    def __next__(self) -> T:
        with self._turn:
            self._producer.begin()
            while (outcome := self._belt.take()) is None:
                self._bell.wait()
        if outcome.is_last:
            raise StopIteration
        try:
            return outcome.unwrap()
        finally:
            del outcome  # an error would refer to itself

    def close(self) -> None:
        """Have the thread end after the element that it is at; does not wait for it."""
        self._closing()


class _OnLoop(AsyncIterator[T]):
    """Takes from a belt on the event loop where it was first asked."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    @abstractmethod
    def _begin(self, loop: asyncio.AbstractEventLoop, bell: LoopBell) -> Belt[T]: ...

    async def __anext__(self) -> T:
        self._begun()
        # Who never has to wait would keep others from the loop, and the producer, too.
        for _ in range(_TURNS):
            await anyio.lowlevel.checkpoint()
        while (outcome := self._belt.take()) is None:
            await self._bell.wait()
        if outcome.is_last:
            raise StopAsyncIteration
        try:
            return outcome.unwrap()
        finally:
            del outcome  # an error would refer to itself

    def _begun(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._bell = LoopBell()
            self._belt = self._begin(loop, self._bell)
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError(
                "this iterator was begun in another event loop: make one in each, with `aiter`"
            )


@final
class FromThreadAsync(_OnLoop[T]):
    """Has a thread draw up to ``room`` elements ahead, for a consumer on an event loop."""

    def __init__(self, source: Source[T], room: int, name: str) -> None:
        super().__init__()
        self._source, self._room, self._name = source, room, name

    def _begin(self, loop: asyncio.AbstractEventLoop, bell: LoopBell) -> Belt[T]:
        heard = Bell()
        to_consumer = functools.partial(_call_soon, loop, bell.ring)
        belt: Belt[T] = Belt(self._room, heard.ring, to_consumer)
        _Producer(self._source, belt, heard, self._name).begin()
        self._closing = _finalizer(self, belt.stop)
        return belt

    async def aclose(self) -> None:
        """Have the thread end, and wait for it, but for a thread that is busy only shortly."""
        if self._loop is not None:
            self._begun()
            self._closing()
            with anyio.move_on_after(_LEAVE_SECONDS):
                while not self._belt.ended:
                    await self._bell.wait()


@final
class FromTask(_OnLoop[T]):
    """Has a task draw up to ``room`` elements of async inputs ahead."""

    def __init__(self, make: Callable[[], AsyncSource[T]], room: int, name: str) -> None:
        super().__init__()
        self._make, self._room, self._name = make, room, name

    def _begin(self, loop: asyncio.AbstractEventLoop, bell: LoopBell) -> Belt[T]:
        heard = LoopBell()
        belt: Belt[T] = Belt(self._room, heard.ring, bell.ring)
        self._task = loop.create_task(_produce(self._make(), belt, heard), name=self._name)
        self._task.add_done_callback(functools.partial(_on_done, belt))
        self._closing = _finalizer(self, functools.partial(_leave_task, loop, belt, self._task))
        return belt

    async def aclose(self) -> None:
        """End the task, wait until it has closed the inputs, and raise what they raise then."""
        if self._loop is not None:
            self._begun()
            self._closing()
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.result()


async def _produce(source: AsyncSource[T], belt: Belt[T], heard: LoopBell) -> None:
    try:
        while not belt.stopped:
            if not belt.may_draw:
                await heard.wait()
                continue
            outcome = await source.draw()
            if outcome.is_last:
                break
            belt.put(outcome)
            del outcome  # or it would live for as long as the next one takes
    finally:
        try:
            await source.aclose()
        except Exception as error:
            if belt.stopped:  # `aclose` raises it, or the loop reports it
                raise
            belt.put(Outcome(error=error))


def _on_done(belt: Belt[Any], task: asyncio.Task[None]) -> None:
    # Cancelled from outside, as when its loop is shut down: that must not look like the end.
    if task.cancelled() and not belt.stopped:
        belt.put(Outcome(error=asyncio.CancelledError()))
    belt.end()


def _leave_task(loop: asyncio.AbstractEventLoop, belt: Belt[Any], task: asyncio.Task[None]) -> None:
    belt.drop()
    _call_soon(loop, belt.stop)
    _call_soon(loop, task.cancel)


_producers: set[_Producer[Any]] = set()


@final
class _Producer(Generic[T]):
    """A thread that draws from a source and puts on a belt, until either is at its end.

    It is a daemon: inputs that never return must not keep the program from ending.
    """

    def __init__(self, source: Source[T], belt: Belt[T], heard: Bell, name: str) -> None:
        self._source, self.belt, self._heard, self._name = source, belt, heard, name
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start the thread; harmless to repeat."""
        if self._thread is None and not self.belt.stopped:
            context = contextvars.copy_context()
            thread = threading.Thread(
                target=context.run, args=(self._run,), name=self._name, daemon=True
            )
            thread.start()
            self._thread = thread

    def join(self, deadline: float) -> None:
        """Wait for the thread's end until then, by the monotonic clock."""
        if self._thread is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        _producers.add(self)
        try:
            self._draw_all()
            self._close()
        finally:
            _producers.discard(self)
            self.belt.end()

    def _draw_all(self) -> None:
        while not self.belt.stopped:
            if not self.belt.may_draw:
                self._heard.wait()
                continue
            outcome = self._source.draw()
            if outcome.is_last:
                return
            self.belt.put(outcome)
            del outcome  # or it would live for as long as the next one takes

    def _close(self) -> None:
        try:
            self._source.close()
        except Exception as error:
            if self.belt.stopped:  # nobody asks any more; `threading.excepthook` reports it
                raise
            self.belt.put(Outcome(error=error))


@atexit.register
def _end_threads() -> None:
    # A daemon thread that is in the middle of a transfer when the interpreter goes away would
    # take the process down with it.
    producers = list(_producers)
    for producer in producers:
        producer.belt.stop()
    deadline = time.monotonic() + _LEAVE_SECONDS
    for producer in producers:
        producer.join(deadline)


def _finalizer(owner: object, stop: Callable[[], object]) -> weakref.finalize[Any, Any]:
    finalizer = weakref.finalize(owner, stop)
    finalizer.atexit = False
    return finalizer


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has been closed
        loop.call_soon_threadsafe(function)
