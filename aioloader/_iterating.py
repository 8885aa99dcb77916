"""Iterating: something asynchronous, driven by a plain ``for`` loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from anyio.from_thread import start_blocking_portal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

__all__ = ["iterate", "refuse_in_loop"]

T = TypeVar("T")


def iterate(make: Callable[[], AsyncIterator[T]], instead: str) -> Iterator[T]:
    """Iterate over what ``make`` returns, on an event loop in a thread of its own.

    ``make`` is called there. The thread ends, and the iterator is closed where it has
    ``aclose``, when this iterator ends, is closed or is collected. In a running event loop,
    which it would block, it raises :class:`RuntimeError` that says to write ``instead``.
    """
    refuse_in_loop(instead)
    with start_blocking_portal() as portal:
        iterator = portal.call(make)
        try:
            while True:
                try:
                    item = portal.call(_following, iterator)
                except StopAsyncIteration:
                    return
                yield item
                del item  # or it would live as long as the wait for the next one
        finally:
            portal.call(_close, iterator)


def refuse_in_loop(instead: str) -> None:
    """Raise :class:`RuntimeError` in a running event loop, with what to write ``instead``."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"this would block the running event loop; write `{instead}` in its place")


async def _following(iterator: AsyncIterator[T]) -> T:
    return await iterator.__anext__()


async def _close(iterator: Any) -> None:
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        await aclose()
