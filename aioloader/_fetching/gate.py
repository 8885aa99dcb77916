"""The gate: how many requests are in flight, fixed or as many as the store sustains."""

from __future__ import annotations

import math
from typing import final

from aioloader._fetching.latency import Latency
from aioloader._fetching.line import Line

__all__ = ["Gate"]

_FIRST_LIMIT = 16
_TOLERANCE = 1.5  # how much slower than at best requests may be while the limit still grows
_SMOOTHING = 0.5
_BACK_OFF = 0.7
_LEAST_LOOK = 16
_PROBE_EVERY = 24  # looks


@final
class Gate:
    """Lets ``limit`` requests through at once, first come first served; for one event loop.

    Where it is adaptive, the limit doubles with each look at the latencies until they rise.
    From then on it follows the ratio of the best to the present median latency, and leaves room
    for a queue of its square root: the gradient limiter of Netflix's concurrency-limits. From
    time to time half as many are let through, to see what the best is by now, as TCP BBR does.
    A refusal by the store cuts the limit as TCP's losses do.
    """

    def __init__(self, most: int, *, adaptive: bool) -> None:
        self._most = most
        self._adaptive = adaptive
        self._limit = float(min(_FIRST_LIMIT, most) if adaptive else most)
        self._line = Line()
        self._recent = Latency(window=4096)
        self._looks = self._skipped = 0
        self._best = math.inf
        self._throttled = self._is_probing = False
        self._is_starting = True
        self.in_flight = 0

    @property
    def limit(self) -> int:
        """How many requests may be in flight at present."""
        return max(int(self._limit / 2 if self._is_probing else self._limit), 1)

    async def enter(self) -> None:
        """Wait for room, and take it."""
        if self.in_flight < self.limit and not self._line:
            self.in_flight += 1
        else:
            await self._line.wait(self.leave)

    def leave(self) -> None:
        """Give the room back."""
        self.in_flight -= 1
        self._admit()

    def succeeded(self, seconds: float) -> None:
        """Note how long a request took."""
        if not self._adaptive:
            return
        if self._skipped > 0:
            self._skipped -= 1  # it was begun under another limit
            return
        self._recent.add(seconds)
        if len(self._recent) >= max(_LEAST_LOOK, self.limit):
            self._look()

    def throttled(self) -> None:
        """Note that the store asked for fewer."""
        if self._adaptive and not self._throttled:
            self._throttled, self._is_starting = True, False
            self._limit = max(self._limit * _BACK_OFF, 1.0)

    def _look(self) -> None:
        median = self._recent.quantile(0.5)
        self._best = median if self._is_probing else min(self._best, median)
        # A limit that is not used up says nothing about a higher one.
        is_used = bool(self._line) or self.in_flight >= self.limit // 2
        if is_used and not self._throttled and not self._is_probing:
            self._follow(_TOLERANCE * self._best / max(median, 1e-9))
        self._recent = Latency(window=4096)
        self._throttled = False
        self._looks += 1
        self._is_probing = not self._is_starting and self._looks % _PROBE_EVERY == 0
        self._skipped = max(self.in_flight, 0)
        self._admit()

    def _follow(self, gradient: float) -> None:
        if self._is_starting and gradient >= 1.0:
            self._limit *= 2.0
        else:
            self._is_starting = False
            wanted = self._limit * min(max(gradient, 0.5), 1.0) + math.sqrt(self._limit)
            self._limit += _SMOOTHING * (wanted - self._limit)
        self._limit = min(max(self._limit, 1.0), float(self._most))

    def _admit(self) -> None:
        while self.in_flight < self.limit and self._line:
            self.in_flight += 1
            self._line.serve()
