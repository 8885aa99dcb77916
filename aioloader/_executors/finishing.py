"""Finishing: wait for what must come to its end, whoever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["finish", "told_once"]

T = TypeVar("T")


async def finish(future: asyncio.Future[T]) -> T:
    """Wait until ``future`` is done and return its result.

    A cancellation of the waiting task, by anyio or by ``task.cancel()``, does not reach the
    future; it is raised once the future is done.
    """
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled
    return future.result()


async def told_once(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Await ``work()``, whose tasks a Ctrl-C or a ``sys.exit`` may meet while they run.

    The loop raises those to whoever runs it. From here they would be reported a second time, as
    a group; so this task counts as cancelled instead.
    """
    try:
        return await work()
    except BaseExceptionGroup as group:
        if group.split((KeyboardInterrupt, SystemExit))[1] is not None:
            raise
        raise asyncio.CancelledError from group
