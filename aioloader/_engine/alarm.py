"""The alarm: time limits of many short waits, with one timer for all of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    import asyncio

__all__ = ["Alarm", "answer"]

_ROUNDING_SECONDS = 1e-3


@final
class Alarm:
    """Answers futures with False at their limits.

    To set a timer for a wait and to take it back costs as much as all else of the wait. This
    one's stays, and is set again for what still waits when it rings.
    """

    def __init__(self) -> None:
        self._due: dict[asyncio.Future[bool], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf

    def set(self, turn: asyncio.Future[bool], seconds: float) -> None:
        """Answer ``turn`` with False after ``seconds``, unless it is forgotten by then."""
        loop = turn.get_loop()
        self._due[turn] = due = loop.time() + seconds
        if due < self._rings_at:
            self._set(loop, due)

    def forget(self, turn: asyncio.Future[bool]) -> None:
        """Note that nobody waits for ``turn`` any more."""
        self._due.pop(turn, None)

    def close(self) -> None:
        """Take the timer back."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings_at = None, math.inf

    def _set(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self.close()
        self._rings_at = due
        self._timer = loop.call_later(max(due - loop.time(), 0.0), self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._rings_at = None, math.inf
        now = loop.time() + _ROUNDING_SECONDS  # some loops' clocks stand still for so long
        for turn, due in list(self._due.items()):
            if due <= now:
                del self._due[turn]
                answer(turn, False)
        if self._due:
            self._set(loop, min(self._due.values()))


def answer(turn: asyncio.Future[bool], result: bool) -> None:
    """Give a wait its result, unless it is over."""
    if not turn.done():
        turn.set_result(result)
