"""Coalescing: ranges that are asked for in one moment, as few requests under a limit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, final
from weakref import WeakKeyDictionary

import anyio

from aioloader.errors import FetchError

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
    of its ranges any more. Used by tasks of any number of event loops; owns nothing but the
    tasks of requests under way, each of which ends before the last who waits for it does.

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
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Ask]]
        self._turns = WeakKeyDictionary()

    async def read(self, key: Hashable, spans: Sequence[Span]) -> list[memoryview]:
        """Return the bytes of each range, as slices of what was read, without a copy."""
        if not spans:
            return []
        loop = asyncio.get_running_loop()
        ask = _Ask(key, spans, loop.create_future())
        asks = self._turns.get(loop)
        if asks is None:
            asks = self._turns[loop] = []
        if not asks:
            loop.call_soon(self._dispatch, asks)
        asks.append(ask)
        try:
            await ask.landed
        finally:
            await ask.leave()
        return ask.payloads

    def _dispatch(self, asks: list[_Ask]) -> None:
        by_key: dict[Hashable, list[_Ask]] = {}
        for ask in asks:
            if not ask.landed.done():  # or else it was cancelled in the same turn
                by_key.setdefault(ask.key, []).append(ask)
        asks.clear()
        for key, group in by_key.items():
            owners = [(ask, part) for ask in group for part in range(len(ask.spans))]
            spans = [ask.spans[part] for ask, part in owners]
            for read in coalesce(spans, gap=self.gap, most=self.most):
                _Request(key, read, [owners[part] for part in read.parts]).begin(self._fetch)


@final
class _Ask:
    """Ranges that somebody waits for."""

    def __init__(self, key: Hashable, spans: Sequence[Span], landed: asyncio.Future[None]) -> None:
        self.key = key
        self.spans = spans
        self.landed = landed
        self.payloads: list[memoryview] = [memoryview(b"")] * len(spans)
        self.requests: list[_Request] = []
        self._missing = len(spans)

    def put(self, part: int, payload: memoryview) -> None:
        self.payloads[part] = payload
        self._missing -= 1
        if not self._missing and not self.landed.done():
            self.landed.set_result(None)

    def fail(self, error: BaseException) -> None:
        if not self.landed.done():
            self.landed.set_exception(error)

    async def leave(self) -> None:
        """Wait for its requests no longer; those that nobody else waits for have ended then."""
        if self.landed.done() and not self.landed.cancelled():
            self.landed.exception()  # or asyncio complains, where who waits was cancelled then
        ending = [task for request in self.requests if (task := request.leave()) is not None]
        self.requests.clear()
        if ending:
            with anyio.CancelScope(shield=True):
                await asyncio.wait(ending)


@final
class _Request:
    """A request under way, and who waits for parts of it."""

    def __init__(self, key: Hashable, read: Read, owners: list[tuple[_Ask, int]]) -> None:
        self._key = key
        self._read = read
        self._owners = owners
        self._waiting = 0
        self._task: asyncio.Task[None] | None = None
        for ask in dict.fromkeys(ask for ask, _ in owners):
            ask.requests.append(self)
            self._waiting += 1

    def begin(self, fetch: Callable[[tuple[Any, int, int]], Awaitable[memoryview]]) -> None:
        self._task = asyncio.get_running_loop().create_task(
            self._run(fetch), name="aioloader-range"
        )

    def leave(self) -> asyncio.Task[None] | None:
        """Count one who waits less; returns the task where it is cancelled for want of others."""
        self._waiting -= 1
        if self._waiting or self._task is None or self._task.done():
            return None
        self._task.cancel()
        return self._task

    async def _run(self, fetch: Callable[[tuple[Any, int, int]], Awaitable[memoryview]]) -> None:
        start, stop, _ = self._read
        try:
            payload = await fetch((self._key, start, stop))
        except Exception as error:
            for ask, mine in zip(self._asks(), _copies(error), strict=False):
                ask.fail(mine)
            return
        for ask, part in self._owners:
            first, last = ask.spans[part]
            ask.put(part, payload[first - start : last - start])

    def _asks(self) -> Iterator[_Ask]:
        yield from dict.fromkeys(ask for ask, _ in self._owners)


def _copies(error: Exception) -> Iterator[Exception]:
    """Yield it for each who waits: what is raised in several tasks mixes their tracebacks."""
    yield error
    while True:
        yield FetchError.again(error) if isinstance(error, FetchError) else error
