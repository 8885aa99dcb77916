"""The deadline: an end for what takes too long, many times a second."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self, final

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Deadline"]

_AGAIN_SECONDS = 1.0


@final
class Deadline:
    """Cancels its block after some seconds; a context manager that a task enters once.

    The block then ends in silence, and `has_passed` is true. Whatever else cancels the task
    comes through. It is `asyncio.timeout`, but for code that swallows a cancellation: that one
    is cancelled again a second later. A cancel scope of anyio's costs as much as a small request.

    >>> async def main():
    ...     with Deadline(0.01) as deadline:
    ...         await asyncio.sleep(60)
    ...     return deadline.has_passed
    >>> asyncio.run(main())
    True
    """

    __slots__ = ("_calls", "_cancelling", "_seconds", "_task", "_timer")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cancelling = self._calls = 0

    @property
    def has_passed(self) -> bool:
        """Whether the block was cancelled."""
        return self._calls > 0

    def __enter__(self) -> Self:
        if self._seconds is not None:
            self._task = task = asyncio.current_task()
            assert task is not None
            self._cancelling = task.cancelling()
            self._wait(self._seconds)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        task, self._task = self._task, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._calls or task is None:
            return False
        left = task.cancelling()
        for _ in range(self._calls):
            left = task.uncancel()
        return kind is asyncio.CancelledError and left <= self._cancelling

    def _wait(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._pass)

    def _pass(self) -> None:
        if self._task is not None:
            self._calls += 1
            self._task.cancel()
            self._wait(_AGAIN_SECONDS)
