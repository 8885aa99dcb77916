"""The watch: which workers have shown no sign of progress for too long."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

__all__ = ["Watch"]


@final
class Watch:
    """Compares what workers show of themselves over time; it knows no clock and no process.

    A sign is anything that changes with progress, or None for a worker of which none is
    expected. Of the time between two looks no more than ``longest_step`` counts: one who did
    not look, because the program was stopped or its loop was busy, has not seen anything.

    >>> watch = Watch(limit_seconds=1.0)
    >>> watch.overdue(10.0, [(7, 0, 41)]), watch.overdue(10.9, [(7, 0, 41)])
    ([], [])
    >>> watch.overdue(11.0, [(7, 0, 41)]), watch.overdue(11.1, [(7, 1, 42)])
    ([0], [])
    """

    def __init__(self, limit_seconds: float, longest_step: float = math.inf) -> None:
        self._limit = limit_seconds
        self._longest_step = longest_step
        self._looked: float | None = None
        self._watched = 0.0
        self._since: dict[int, tuple[Hashable, float]] = {}

    def overdue(self, now: float, signs: Sequence[Hashable | None]) -> list[int]:
        """Return the indices of the workers whose sign has not changed for the limit."""
        if self._looked is not None:
            self._watched += min(now - self._looked, self._longest_step)
        self._looked = now
        late = []
        for index, sign in enumerate(signs):
            last, since = self._since.get(index, (None, 0.0))
            if sign is None or sign != last:
                self._since[index] = (sign, self._watched)
            elif self._watched - since >= self._limit:
                late.append(index)
        return late

    def forget(self) -> None:
        """Start anew, with other workers."""
        self._since.clear()
