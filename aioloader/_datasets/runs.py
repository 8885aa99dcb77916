"""Runs: how functions of the user's are called while elements are awaited on a loop."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar, final

from aioloader._datasets.hosts import Hands

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Runs"]

R = TypeVar("R")


@final
class Runs:
    """Runs functions of the user's for the loop: up to ``count`` threads, and as many tasks."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._hands = Hands(count, "aioloader-read")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free = asyncio.Semaphore(count)

    async def __call__(self, function: Callable[..., R], /, *args: Any) -> R:
        """Call a plain function in a thread."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[R] = loop.create_future()

        def call() -> None:
            try:
                result = function(*args)
            except BaseException as error:
                _soon(loop, _settle, done, None, _portable(error))
            else:
                _soon(loop, _settle, done, result, None)

        self._hands.submit(call)
        return await done

    async def awaiting(self, function: Callable[..., Awaitable[R]], /, *args: Any) -> R:
        """Await a coroutine function."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._free = loop, asyncio.Semaphore(self.count)
        async with self._free:
            return await function(*args)

    def close(self) -> None:
        """Have the threads end, without waiting."""
        self._hands.close()


def _soon(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(function, *args)


def _settle(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.done():  # it was cancelled
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


def _portable(error: BaseException) -> BaseException:
    if not isinstance(error, StopIteration):  # which a future does not take
        return error
    raised = RuntimeError("a function of the dataset raised StopIteration")
    raised.__cause__ = error
    return raised
