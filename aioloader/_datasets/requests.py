"""Requests: what an iterator awaits, fulfilled by whoever drives it, in a thread or on a loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

__all__ = ["Bell", "CurrentLoop", "InThread", "Lender", "OnLoop", "Request"]

_LOOK_SECONDS = 0.2
_ENDED = "the event loop of this pipeline was closed while it was waited for"


class Lender(Protocol):
    """Who drives: it has a loop for what is awaited, and a thread for what would block that."""

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop on which coroutines of this pipeline run."""

    @property
    def has_ended(self) -> bool:
        """Whether that loop is closed: nothing that it should do will ever be done."""

    def submit(self, call: Callable[[], None]) -> None:
        """Run a call in the host's thread."""


class Request(ABC):
    """Awaited inside of `DatasetIterator._advance`, and nowhere else.

    A driver in a thread calls `block`, one on the loop awaits `wait`. What they return is
    the value of the ``await``. Both may be repeated after an interruption or a cancellation,
    and then go on waiting.
    """

    __slots__ = ()

    may_wait = True
    """Whether it waits for something that goes on elsewhere."""

    def __await__(self) -> Generator[Request, Any, Any]:
        return (yield self)

    @abstractmethod
    def block(self, host: Lender) -> Any:
        """Wait in a thread."""

    @abstractmethod
    async def wait(self, host: Lender) -> Any:
        """Wait on the loop."""


@final
class Bell(Request):
    """Wakes one waiter. A ring that nobody waits for is heard by the next who waits.

    It may be rung in any thread, also where the garbage collector has interrupted a wait:
    hence the bare lock, and no Condition.
    """

    __slots__ = ("_heard", "_silence")

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()
        self._heard: Callable[[], None] | None = None

    def ring(self) -> None:
        """Wake whoever waits, or the next who will."""
        with contextlib.suppress(RuntimeError):  # it has been rung already
            self._silence.release()
        heard = self._heard
        if heard is not None:
            heard()

    def block(self, host: Lender | None = None) -> None:
        """Block until it rings."""
        # A signal that comes just before it blocks would otherwise be heard only when it rings.
        while not self._silence.acquire(timeout=_LOOK_SECONDS):
            if host is not None and host.has_ended:
                raise RuntimeError(_ENDED)

    async def wait(self, host: Lender | None = None) -> None:
        """Wait until it rings."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def heard() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(event.set)

        self._heard = heard
        try:
            while not self._silence.acquire(blocking=False):
                await event.wait()
                event.clear()
        finally:
            self._heard = None


@final
class CurrentLoop(Request):
    """Asks for the loop on which coroutines of this pipeline run."""

    __slots__ = ()

    may_wait = False

    def block(self, host: Lender) -> asyncio.AbstractEventLoop:
        """Return the host's loop, which runs in another thread."""
        return host.loop()

    async def wait(self, host: Lender) -> asyncio.AbstractEventLoop:
        """Return the running loop."""
        return host.loop()


@final
class InThread(Request):
    """Asks for ``call()`` off the loop."""

    __slots__ = ("_bell", "_call", "_error", "_value")

    may_wait = False

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._bell: Bell | None = None
        self._value: Any = None
        self._error: BaseException | None = None

    def block(self, host: Lender) -> Any:
        """Call it."""
        if self._bell is None:
            return self._call()
        self._bell.block()
        return self._outcome()

    async def wait(self, host: Lender) -> Any:
        """Have the host's thread call it."""
        if self._bell is None:
            self._bell = Bell()
            host.submit(self._run)
        await self._bell.wait()
        return self._outcome()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error
        assert self._bell is not None
        self._bell.ring()

    def _outcome(self) -> Any:
        if self._error is None:
            return self._value
        try:
            raise self._error
        finally:
            del self  # or the error would refer to itself, by way of this frame


@final
class OnLoop(Request):
    """Asks for what ``make()`` returns to be awaited on the loop."""

    __slots__ = ("_future", "_make", "_task")

    def __init__(self, make: Callable[[], Awaitable[Any]]) -> None:
        self._make = make
        self._future: Any = None
        self._task: asyncio.Task[Any] | None = None

    def block(self, host: Lender) -> Any:
        """Wait for a loop that runs in another thread."""
        if self._future is None:
            self._future = asyncio.run_coroutine_threadsafe(self._awaited(), host.loop())
        while not self._future.done():
            with contextlib.suppress(TimeoutError):  # an interruption comes out of this wait
                self._future.exception(timeout=_LOOK_SECONDS)
            if host.has_ended and not self._future.done():
                raise RuntimeError(_ENDED)
        return self._future.result()

    async def wait(self, host: Lender) -> Any:
        """Await it as a task, which a cancellation leaves running."""
        if self._task is None:
            self._task = host.loop().create_task(self._awaited(), name="aioloader-request")
        await asyncio.wait([self._task])
        return self._task.result()

    async def _awaited(self) -> Any:
        return await self._make()
