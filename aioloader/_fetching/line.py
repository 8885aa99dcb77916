"""The line: who waits for something that is given out one by one, first come first served."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Line"]


@final
class Line:
    """Tasks of one event loop that wait for their turn; true while somebody does.

    >>> async def main():
    ...     line = Line()
    ...     waiting = asyncio.ensure_future(line.wait(give_back=lambda: None))
    ...     await asyncio.sleep(0)
    ...     line.serve()
    ...     await waiting
    ...     return len(line)
    >>> asyncio.run(main())
    0
    """

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        while self._waiting and self._waiting[0].done():  # cancelled a moment ago
            self._waiting.popleft()
        return len(self._waiting)

    async def wait(self, give_back: Callable[[], None]) -> None:
        """Wait for `serve`; ``give_back`` is called where that and a cancellation coincide."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            with suppress(ValueError):
                self._waiting.remove(turn)
            if turn.done() and not turn.cancelled():
                give_back()
            raise

    def serve(self) -> None:
        """Let the first one go on; there must be one."""
        if len(self):
            self._waiting.popleft().set_result(None)
