"""Hosts: the threads that a pipeline runs in, and the loop that a plain ``for`` lends it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from typing import TYPE_CHECKING, final

from aioloader._engine.loop import new_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Hands", "Host", "lent_loop"]

_Calls = queue.SimpleQueue["Callable[[], None] | None"]


@final
class Hands:
    """Up to ``count`` daemon threads that run calls, in the order in which they were submitted.

    They start as they are needed, and end when this is closed or collected, each after the
    call that it is at: nobody waits for a call that does not return. Calls handle their own
    errors.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._calls: _Calls = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def __repr__(self) -> str:
        return f"<Hands: {len(self._threads)} of {self._count} threads>"

    def submit(self, call: Callable[[], None]) -> None:
        """Have a thread run the call."""
        self._calls.put(call)
        # Who is idle has taken the call already, or will before another thread could start.
        if len(self._threads) < self._count and self._calls.qsize() > 0:
            thread = threading.Thread(
                target=_serve, args=(self._calls,), name=self._name, daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Have the threads end; drops calls that have not begun."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()
        for _ in self._threads:
            self._calls.put(None)

    @property
    def ended(self) -> bool:
        """Whether no thread is left."""
        return not any(thread.is_alive() for thread in self._threads)

    __del__ = close


def _serve(calls: _Calls) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # or it would live as long as the wait for the next one


@final
class _LoopThread:
    """An event loop in a daemon thread; ends when it is stopped or collected."""

    def __init__(self) -> None:
        self._stopped = False
        self.loop = new_loop()
        self.thread = threading.Thread(
            target=_run, args=(self.loop,), name="aioloader-datasets-loop", daemon=True
        )
        self.thread.start()

    def stop(self) -> None:
        if self._stopped:  # a second time it would keep the loop from ending its tasks
            return
        self._stopped = True
        with contextlib.suppress(RuntimeError):  # it is closed
            self.loop.call_soon_threadsafe(self.loop.stop)

    __del__ = stop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.get_loop().run_forever()


_lent = threading.local()


def lent_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop that an iterator lends to others, which are iterated over inside of it."""
    return getattr(_lent, "loop", None)


@final
class Host:
    """What drives one iterator: a thread for what would block the loop, and a loop.

    The loop is the one that the program iterates on. For a plain ``for`` there is none, and a
    thread runs one, once somebody asks for it.
    """

    def __init__(self) -> None:
        self._hands: Hands | None = None
        self._own: _LoopThread | None = None
        self._running: asyncio.AbstractEventLoop | None = None
        self._lent: asyncio.AbstractEventLoop | None = None

    def use(self, running: asyncio.AbstractEventLoop | None) -> None:
        """Lend this loop from now on; None stands for one of the host's own."""
        self._running = running

    @property
    def has_moved(self) -> bool:
        """Whether a loop was lent that is not the present one any more."""
        own = None if self._own is None else self._own.loop
        return self._lent is not None and self._lent is not (self._running or own)

    @property
    def has_ended(self) -> bool:
        """Whether the loop that was lent is closed."""
        return self._lent is not None and self._lent.is_closed()

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop on which coroutines run."""
        if self._running is not None:
            self._lent = self._running
        else:
            if self._own is None:
                self._own = _LoopThread()
            self._lent = self._own.loop
        return self._lent

    @contextlib.contextmanager
    def lending(self) -> Iterator[None]:
        """Lend the running loop to what iterates in this thread meanwhile."""
        before, _lent.loop = lent_loop(), self._running
        try:
            yield
        finally:
            _lent.loop = before

    def submit(self, call: Callable[[], None]) -> None:
        """Run a call in the host's thread."""
        if self._hands is None:
            self._hands = Hands(1, "aioloader-datasets")
        self._hands.submit(call)

    def close(self) -> None:
        """Let go of thread and loop; they come again if they are needed again."""
        hands, self._hands = self._hands, None
        own, self._own = self._own, None
        self._lent = None
        if hands is not None:
            hands.close()
        if own is not None:
            own.stop()
