"""Hosting: the sessions of one dataset, in a thread beside the program, kept between epochs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, final

from aioloader._engine.background import Background

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator
    from concurrent.futures import Future

    from aioloader._engine.session import Session
    from aioloader.protocols import Ticket

__all__ = ["END", "Host", "following"]

END = object()
"""What follows the last batch."""

Open = Any


async def following(session: Session) -> Any:
    """Return the next batch of a session, its array ``tree``, or `END`; raises its error."""
    while (outcome := session.take()) is None:
        if session.ended():
            return END
        await session.changed()
    error, outcome.error = outcome.error, None
    if error is not None:
        try:
            raise error
        finally:
            del error
    assert outcome.value is not None
    return outcome.value.placed.arrays["tree"]


@final
class Host:
    """Owns a thread with an event loop, and the sessions in it; closing gives all of it back.

    An epoch has a session of its own for as long as it runs, so that any number may run at
    once. One session is kept when its epoch ends, with its workers, for the next epoch. The
    thread makes all of it independent of the program's loops, be there none or several.
    """

    def __init__(self, name: str = "aioloader-minibatches") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._background: Background | None = None
        self._idle: list[Session] = []
        self._sessions: set[Session] = set()
        self.closed_count = 0

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine in the thread, which starts if there is none."""
        with self._lock:
            if self._background is None:
                self._background = Background(self._name)
            return self._background.submit(coroutine)

    async def begin(
        self,
        open_session: Callable[[Iterator[Ticket]], Awaitable[Session]],
        tickets: Iterator[Ticket],
    ) -> Session:
        """Begin an epoch; in the thread."""
        if self._idle:
            session = self._idle.pop()
            session.restart(tickets)
        else:
            session = await open_session(tickets)
            self._sessions.add(session)
        return session

    def run(self, make: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run a coroutine in the thread, if there is one, from any thread, without waiting."""
        with self._lock:
            if self._background is not None:
                self._background.submit(make())

    def give_back(self, session: Session, *, keep: bool) -> None:
        """Take the session of an epoch that is over, from any thread, without waiting."""
        with self._lock:
            if self._background is not None:
                self._background.submit(self.take_back(session, keep=keep))

    async def take_back(self, session: Session, *, keep: bool) -> None:
        """Do the same, in the thread."""
        if keep and not self._idle:
            session.restart(iter(()))
            self._idle.append(session)
        else:
            self._sessions.discard(session)
            await session.aclose()

    def close(self) -> None:
        """End all sessions and the thread; blocks for as long as the workers need to end."""
        background = self._detach()
        if background is not None:
            background.submit(self._close_all()).result()
            background.stop()

    def abandon(self) -> Future[None] | None:
        """Do the same without waiting; returns what can be waited for."""
        background = self._detach()
        if background is None:
            return None
        ending = background.submit(self._close_all())
        ending.add_done_callback(lambda _: background.stop())
        return ending

    def _detach(self) -> Background | None:
        with self._lock:
            background, self._background = self._background, None
            self.closed_count += 1
            return background

    async def _close_all(self) -> None:
        sessions, self._sessions, self._idle = self._sessions, set(), []
        for session in sessions:
            await session.aclose()
