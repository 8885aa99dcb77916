"""The watch: which workers have been at one row for too long."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Reading", "Watch"]

Reading = tuple[int, int, int]
"""What a worker's place on the board says: its chunk (-1 when idle), its row, a heartbeat."""


@final
class Watch:
    """Compares readings of the board over time; it knows no clock and no process.

    >>> watch = Watch(limit_seconds=1.0)
    >>> watch.overdue(10.0, [(7, 0, 41)]), watch.overdue(10.9, [(7, 0, 41)])
    ([], [])
    >>> watch.overdue(11.0, [(7, 0, 41)]), watch.overdue(11.1, [(7, 1, 42)])
    ([0], [])
    """

    def __init__(self, limit_seconds: float) -> None:
        self._limit = limit_seconds
        self._since: dict[int, tuple[Reading, float]] = {}

    def overdue(self, now: float, readings: Sequence[Reading]) -> list[int]:
        """Return the indices of the workers whose reading has not changed for the limit."""
        late = []
        for index, reading in enumerate(readings):
            last, since = self._since.get(index, (None, now))
            if reading != last or reading[0] < 0:
                self._since[index] = (reading, now)
            elif now - since >= self._limit:
                late.append(index)
        return late

    def forget(self) -> None:
        """Start anew, with other workers."""
        self._since.clear()
