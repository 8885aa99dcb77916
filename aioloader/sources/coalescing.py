"""Coalescing: ranges that are asked for in one moment, as few requests under a limit."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple, final

from aioloader.sources.turns import Call, Turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence

__all__ = ["COALESCE_GAP", "COALESCE_MOST", "Gatherer", "Read", "Span", "coalesce"]

COALESCE_GAP = 64 * 1024
COALESCE_MOST = 4 * 1024 * 1024

Span = tuple[int, int]
"""A range of bytes: its start, and where it stops."""


class Read(NamedTuple):
    """One request: the range that it is for, and which of those asked for lie in it."""

    start: int
    stop: int
    parts: tuple[int, ...]


def coalesce(spans: Sequence[Span], *, gap: int, most: int) -> list[Read]:
    """Plan requests for ranges of one object.

    Ranges whose distance is ``gap`` bytes at most are read by one request, unless that became
    longer than ``most``; a longer range is a request of its own. Each range lies in exactly
    one of them. Ranges that overlap are bytes read twice only where the limit parts them.

    >>> coalesce([(900, 1000), (0, 100), (150, 200)], gap=50, most=1000)
    [Read(start=0, stop=200, parts=(1, 2)), Read(start=900, stop=1000, parts=(0,))]
    """
    reads: list[Read] = []
    parts: list[int] = []
    first = last = 0
    for part in sorted(range(len(spans)), key=lambda part: spans[part]):
        start, stop = spans[part]
        end = max(last, stop)
        if parts and start - last <= gap and (end - first <= most or end == last):
            parts.append(part)
        else:
            if parts:
                reads.append(Read(first, last, tuple(parts)))
            parts, first, end = [part], start, stop
        last = end
    if parts:
        reads.append(Read(first, last, tuple(parts)))
    return reads


@final
class Gatherer:
    """Reads ranges; those asked for in one turn of an event loop are planned together.

    It has no limits of its own: ``fetch`` has. A request ends early when nobody waits for any
    of its ranges any more.

    Args:
        fetch: A coroutine function that returns the bytes of ``(key, start, stop)``.
        gap: The most bytes between two ranges of one request.
        most: The most bytes of a request for several ranges.
    """

    def __init__(
        self,
        fetch: Callable[[tuple[Any, int, int]], Awaitable[memoryview]],
        *,
        gap: int = COALESCE_GAP,
        most: int = COALESCE_MOST,
    ) -> None:
        for name, value, least in (("coalesce_gap", gap, 0), ("coalesce_most", most, 1)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}={value!r} must be a whole number of bytes")
            if value < least:
                raise ValueError(f"{name}={value!r} must be {least} at least")
        self._fetch = fetch
        self.gap = gap
        self.most = most
        self._turns = Turns(self._plan)

    async def read(self, key: Hashable, spans: Sequence[Span]) -> list[memoryview]:
        """Return the bytes of each range, as slices of what was read, without a copy."""
        return await self._turns.get(key, spans)

    def _plan(self, key: Any, spans: Sequence[Span]) -> Iterator[Call]:
        for read in coalesce(spans, gap=self.gap, most=self.most):

            def pick(payload: memoryview, part: int, start: int = read.start) -> memoryview:
                first, last = spans[part]
                return payload[first - start : last - start]

            request = (key, read.start, read.stop)
            yield Call(functools.partial(self._fetch, request), read.parts, pick)
