"""Epochs: iterators over the minibatches of one epoch, for `for` and for `async for`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, final

from aioloader._engine.hosting import END, Host, following

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from concurrent.futures import Future

    from aioloader._engine.session import Session

__all__ = ["DirectEpoch", "HostedEpoch", "LoopEpoch"]

T = TypeVar("T")


@final
class DirectEpoch(Generic[T]):
    """Makes each minibatch when it is asked for, in the asking thread."""

    def __init__(self, make: Callable[[], Iterator[Callable[[], T]]]) -> None:
        self._make = make
        self._minibatches: Iterator[Callable[[], T]] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._minibatches is None:
            self._minibatches = self._make()
        return next(self._minibatches)()

    def close(self) -> None:
        """There is nothing to give back."""


@final
class HostedEpoch(Generic[T]):
    """Reads a session in the thread of a host, with `for` or with `async for`.

    A wait that is cancelled or interrupted loses nothing: the next one goes on with it.
    """

    def __init__(self, host: Host, begin: Callable[[], Awaitable[Session]], owner: object) -> None:
        self._host = host
        self._begin = begin
        self._owner = owner  # the loader, which must not be collected meanwhile
        self._session: Session | None = None
        self._pending: Future[Any] | None = None
        self._closed_count = host.closed_count
        self._failed = self._ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        pending = self._ask()
        if pending is None:
            raise StopIteration
        pending.exception()  # an interruption comes out of this wait
        value = self._receive(pending)
        if value is END:
            raise StopIteration
        return value  # type: ignore[no-any-return]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        pending = self._ask()
        if pending is None:
            raise StopAsyncIteration
        waiting = asyncio.wrap_future(pending)
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([waiting])
        value = self._receive(pending)
        if value is END:
            raise StopAsyncIteration
        return value  # type: ignore[no-any-return]

    def close(self) -> None:
        """Give the session back, from any thread, without waiting; harmless to repeat."""
        self._ended = True
        session, self._session = self._session, None
        if session is not None:
            self._host.give_back(session, keep=not self._failed)
        elif self._pending is not None:
            host, keep = self._host, not self._failed

            def opened(pending: Future[Any]) -> None:
                if not pending.cancelled() and pending.exception() is None:
                    session, _ = pending.result()
                    host.give_back(session, keep=keep)

            self._pending.add_done_callback(opened)
        self._pending = None

    async def aclose(self) -> None:
        """Do the same."""
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(RuntimeError):  # at the end of the program
            self.close()

    def _ask(self) -> Future[Any] | None:
        if self._ended:
            return None
        if self._closed_count != self._host.closed_count:
            self._ended = True
            raise RuntimeError("the loader was closed before this epoch had ended")
        if self._pending is None:
            self._pending = self._host.submit(_next_of(self._session, self._begin))
        return self._pending

    def _receive(self, pending: Future[Any]) -> Any:
        self._pending = None
        if self._closed_count != self._host.closed_count:
            self._ended = True
            raise RuntimeError("the loader was closed before this epoch had ended")
        try:
            self._session, outcome = pending.result()
        except BaseException:
            self._ended = True  # it never began
            raise
        if isinstance(outcome, _Raised):
            self._failed = True
            try:
                raise outcome.error
            finally:
                del outcome
        if outcome is END:
            self.close()
        return outcome


class _Raised:
    def __init__(self, error: Exception) -> None:
        self.error = error


async def _next_of(session: Session | None, begin: Callable[[], Awaitable[Session]]) -> Any:
    if session is None:
        session = await begin()
    try:
        return session, await following(session)
    except Exception as error:
        return session, _Raised(error)


@final
class LoopEpoch(Generic[T]):
    """Reads a session on the program's own loop, for datasets that are awaited there."""

    def __init__(self, begin: Callable[[], Awaitable[Session]], owner: object) -> None:
        self._begin = begin
        self._owner = owner
        self._session: Session | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._ended:
            raise StopAsyncIteration
        if self._session is None:
            self._loop = asyncio.get_running_loop()
            self._session = await self._begin()
        self._session.check_loop()
        value = await following(self._session)
        if value is END:
            await self.aclose()
            raise StopAsyncIteration
        return value  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """End the epoch; harmless to repeat."""
        self._ended = True
        session, self._session = self._session, None
        if session is not None:
            await session.aclose()

    def __del__(self) -> None:
        session, loop = self._session, self._loop
        if session is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, with all that ran in it
                loop.call_soon_threadsafe(lambda: loop.create_task(session.aclose()))
