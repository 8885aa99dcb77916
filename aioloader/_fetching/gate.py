"""The gate: how many requests are in flight, fixed or as many as the store sustains."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import final

from aioloader._fetching.latency import Latency

__all__ = ["Gate"]

_FIRST_LIMIT = 16
_TOLERANCE = 1.5  # how much slower than at best requests may be while the limit still grows
_SMOOTHING = 0.5
_FORGETTING = 1.02  # the best is let grow by this with each look, as stores change
_BACK_OFF = 0.7
_LEAST_LOOK = 16


@final
class Gate:
    """Lets ``limit`` requests through at once, first come first served; for one event loop.

    Where it is adaptive, the limit follows the ratio of the shortest to the present median
    latency, and leaves room for a queue of its square root. That is the gradient limiter of
    Netflix's concurrency-limits; a refusal by the store cuts it as TCP does.
    """

    def __init__(self, most: int, *, adaptive: bool) -> None:
        self._most = most
        self._adaptive = adaptive
        self._limit = float(min(_FIRST_LIMIT, most) if adaptive else most)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._recent = Latency(window=4096)
        self._seen = 0
        self._best = math.inf
        self._throttled = False
        self.in_flight = 0

    @property
    def limit(self) -> int:
        """How many requests may be in flight at present."""
        return max(int(self._limit), 1)

    async def enter(self) -> None:
        """Wait for room, and take it."""
        if self.in_flight < self.limit and not self._waiting:
            self.in_flight += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # it was let in in the moment of the cancellation
            else:
                self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        """Give the room back."""
        self.in_flight -= 1
        self._admit()

    def succeeded(self, seconds: float) -> None:
        """Note how long a request took."""
        if not self._adaptive:
            return
        self._recent.add(seconds)
        self._seen += 1
        if self._seen >= max(_LEAST_LOOK, self.limit):
            self._look()

    def throttled(self) -> None:
        """Note that the store asked for fewer."""
        if self._adaptive and not self._throttled:
            self._throttled = True
            self._limit = max(self._limit * _BACK_OFF, 1.0)

    def _look(self) -> None:
        median = self._recent.quantile(0.5)
        self._best = min(self._best * _FORGETTING, median)
        # A limit that is not used up says nothing about a higher one.
        if not self._throttled and (self._waiting or self.in_flight >= self.limit // 2):
            gradient = min(max(_TOLERANCE * self._best / max(median, 1e-9), 0.5), 1.0)
            wanted = self._limit * gradient + math.sqrt(self._limit)
            self._limit += _SMOOTHING * (wanted - self._limit)
            self._limit = min(max(self._limit, 1.0), float(self._most))
        self._recent = Latency(window=4096)
        self._seen, self._throttled = 0, False
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.in_flight < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)
