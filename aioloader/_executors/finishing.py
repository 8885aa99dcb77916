"""Finishing: wait for what must come to its end, whoever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import anyio

__all__ = ["finish"]

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
