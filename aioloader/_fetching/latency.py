"""Latency: how long recent requests took, and any quantile of that at once."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from threading import Lock
from typing import final

__all__ = ["Latency"]


@final
class Latency:
    """The last ``window`` seconds added, in order of age and of size.

    Adding costs one insertion into a short sorted list, about a microsecond. Any thread may.

    >>> latency = Latency(window=4)
    >>> for seconds in (9.0, 1.0, 2.0, 3.0, 4.0):
    ...     latency.add(seconds)
    >>> len(latency), latency.quantile(0.5), latency.quantile(1.0)
    (4, 2.0, 4.0)
    """

    __slots__ = ("_aged", "_lock", "_sorted", "_window")

    def __init__(self, window: int = 1024) -> None:
        self._window = window
        self._aged: deque[float] = deque()
        self._sorted: list[float] = []
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, seconds: float) -> None:
        """Add one, and forget the oldest where there are too many."""
        with self._lock:
            self._aged.append(seconds)
            insort(self._sorted, seconds)
            if len(self._aged) > self._window:
                del self._sorted[bisect_left(self._sorted, self._aged.popleft())]

    def quantile(self, share: float) -> float:
        """Return the smallest that at least ``share`` of them do not exceed; 0.0 for none."""
        with self._lock:
            if not self._sorted:
                return 0.0
            return self._sorted[max(math.ceil(share * len(self._sorted)) - 1, 0)]
