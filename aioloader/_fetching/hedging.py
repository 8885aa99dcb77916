"""Hedging: a second request where the first is late, and the first answer of the two."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["hedged"]

P = TypeVar("P")

_LEAST_DELAY = 1e-3


async def hedged(
    request: Callable[[], Awaitable[P]], delay: float, may_hedge: Callable[[], bool]
) -> tuple[P, bool]:
    """Return what ``request()`` brings, and whether a second call of it did.

    The second one is made when the first takes longer than ``delay`` seconds and
    ``may_hedge()``, or as soon as that is so. One that fails leaves the other to answer; where
    both fail the error is the first one's. Whatever loses is cancelled and has ended on return.
    """
    first = asyncio.ensure_future(_awaited(request))
    running: set[asyncio.Future[Any]] = {first}
    try:
        while not first.done() and len(running) == 1:
            await asyncio.wait(running, timeout=max(delay, _LEAST_DELAY))
            if not first.done() and may_hedge():
                running.add(asyncio.ensure_future(_awaited(request)))
        while True:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for answer in sorted(done, key=lambda task: task is not first):
                if not answer.cancelled() and answer.exception() is None:
                    return answer.result(), answer is not first
            if len(done) == len(running):
                return await first, False  # raises
            # A failure while the other is under way: see what that one brings.
            await asyncio.wait(running, return_when=asyncio.ALL_COMPLETED)
    finally:
        await _end(running)


async def _awaited(request: Callable[[], Awaitable[P]]) -> P:
    return await request()


async def _end(running: set[asyncio.Future[Any]]) -> None:
    for task in running:
        task.cancel()
    cancelled = None
    # anyio would go on cancelling this wait, and with it what the tasks do at their ends.
    with anyio.CancelScope(shield=True):
        while pending := [task for task in running if not task.done()]:
            try:
                await asyncio.wait(pending)
            except asyncio.CancelledError as error:  # once more: they still have to end
                cancelled = error
                for task in pending:
                    task.cancel()
    for task in running:
        if not task.cancelled():
            task.exception()  # seen
    if cancelled is not None:
        raise cancelled
