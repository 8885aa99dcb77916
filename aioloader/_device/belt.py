"""The belt: what lies ready between a producer and its consumer, and who may go on."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LAST", "Bell", "Belt", "LoopBell", "Outcome"]

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True, eq=False)
class Outcome(Generic[T]):
    """What one call of a producer came to: an element, an error, or the end."""

    element: T | None = None
    error: BaseException | None = None
    is_last: bool = False

    def unwrap(self) -> T:
        """Return the element, or raise the error."""
        if self.error is None:
            return self.element  # type: ignore[return-value]  # T may include None
        try:
            raise self.error
        finally:
            del self  # or the error would refer to itself, by way of this frame


LAST: Outcome[Any] = Outcome(is_last=True)


@final
class Bell:
    """Wakes a thread. A ring that nobody waits for is heard by the next who waits.

    It may be rung anywhere, also where the garbage collector has interrupted a wait: hence
    the bare lock, and no Condition.
    """

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        """Wake whoever waits, or the next who will."""
        with contextlib.suppress(RuntimeError):  # it has been rung already
            self._silence.release()

    def wait(self) -> None:
        """Block until it rings."""
        self._silence.acquire()


@final
class LoopBell:
    """Wakes tasks of one event loop, on which it is rung, too."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def ring(self) -> None:
        """Wake whoever waits, or the next who will."""
        self._event.set()

    async def wait(self) -> None:
        """Wait until it rings."""
        await self._event.wait()
        self._event = anyio.Event()


@final
class Belt(Generic[T]):
    """Outcomes in order, at most ``room`` of them, between one producer and one consumer.

    Nothing here blocks. The producer puts an outcome only after `may_draw` was true; the
    consumer takes what is there, and by taking in vain says that it waits. With a ``room``
    of 0 nothing is drawn but what the consumer waits for.

    Producer and consumer may be different threads. The order in which the attributes are
    written is what keeps the count: never may both "there is room" and "it is waited for"
    speak for the same place.
    """

    def __init__(
        self, room: int, to_producer: Callable[[], None], to_consumer: Callable[[], None]
    ) -> None:
        self._room = room
        self._to_producer = to_producer
        self._to_consumer = to_consumer
        self._outcomes: deque[Outcome[T]] = deque()
        self._wanted = False
        self.ended = False
        self.stopped = False

    def __repr__(self) -> str:
        state = "stopped" if self.stopped else "ended" if self.ended else "running"
        return f"<Belt: {len(self._outcomes)} of {self._room} ready, {state}>"

    @property
    def may_draw(self) -> bool:
        """Whether the producer may go on to one more outcome."""
        return len(self._outcomes) < max(self._room, self._wanted)

    def put(self, outcome: Outcome[T]) -> None:
        """Add an outcome, for the producer; if the belt was stopped, drop it."""
        self._outcomes.append(outcome)
        if self.stopped:
            self._outcomes.clear()
        self._to_consumer()

    def end(self) -> None:
        """Say that nothing more will be put."""
        self.ended = True
        self._to_consumer()

    def take(self) -> Outcome[T] | None:
        """Take the next outcome, for the consumer; None says that it has to be waited for."""
        if self.stopped:
            return LAST
        ended = self.ended  # asked first: the producer puts, and then ends
        self._wanted = False  # for the place that becomes free is counted from here on
        outcome: Outcome[T] | None = None
        try:
            outcome = self._outcomes.popleft()
        except IndexError:
            if ended:
                return LAST
            self._wanted = True
        self._to_producer()
        return outcome

    def drop(self) -> None:
        """Drop everything, also what is put later, for good; on any thread."""
        self.stopped = True
        self._outcomes.clear()

    def stop(self) -> None:
        """Do the same, and have both sides know."""
        self.drop()
        self._to_producer()
        self._to_consumer()
