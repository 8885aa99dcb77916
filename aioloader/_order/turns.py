"""Whose turn it is: how the groups of an epoch take turns."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from itertools import islice
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Turns"]


@final
@dataclass(frozen=True, slots=True)
class Turns:
    """The sequence in which groups of ``counts`` batches deliver them, within one epoch.

    With ``interleave`` the group that has used the smallest fraction of its batches goes
    next, ties to the earliest: the pairs (batch / count, group), sorted. Without, one group
    follows another.

    >>> [group for group, batch in Turns((2, 4)).sequence()]
    [0, 1, 1, 0, 1, 1]
    >>> list(Turns((2, 1), interleave=False).sequence(start=1))
    [(0, 1), (1, 0)]
    """

    counts: tuple[int, ...]
    interleave: bool = True

    @property
    def total(self) -> int:
        """How many batches there are in all."""
        return sum(self.counts)

    def at(self, turn: int) -> tuple[int, int]:
        """Return which group delivers at ``turn``, and which of its batches."""
        return next(self.sequence(turn))

    def sequence(self, start: int = 0) -> Iterator[tuple[int, int]]:
        """Yield (group, number of the batch within the group) from turn ``start`` on."""
        used = self.used(start)
        return self._least_used_first(used) if self.interleave else self._in_line(used)

    def used(self, turns: int) -> list[int]:
        """Return how many batches each group has delivered after so many turns.

        The time depends on the number of groups, not on that of batches. A group has
        ``ceil(t * count)`` batches below the fraction ``t``, so that there are fewer than
        ``t * total + groups`` of them in all. With ``t = (turns - groups) / total`` they
        all have been delivered, and at most one a group is left to be counted one by one.
        """
        if not self.interleave:
            return self._used_in_line(turns)
        total, surely = self.total, max(0, turns - len(self.counts))
        used = [-(-surely * count // total) for count in self.counts]
        for group, batch in islice(self._least_used_first(tuple(used)), turns - sum(used)):
            used[group] = batch + 1
        return used

    def _used_in_line(self, turns: int) -> list[int]:
        used = []
        for count in self.counts:
            used.append(min(count, turns))
            turns -= used[-1]
        return used

    def _in_line(self, used: Sequence[int]) -> Iterator[tuple[int, int]]:
        for group, (first, count) in enumerate(zip(used, self.counts, strict=True)):
            for batch in range(first, count):
                yield group, batch

    def _least_used_first(self, used: Sequence[int]) -> Iterator[tuple[int, int]]:
        # Fractions as whole numbers: two that differ do so by at least 1 / (count * count),
        # hence by more than 1 after this shift. Rounding down neither swaps nor joins them.
        shift = 2 * max(self.counts).bit_length()
        waiting = [
            ((batch << shift) // count, group, batch)
            for group, (batch, count) in enumerate(zip(used, self.counts, strict=True))
            if batch < count
        ]
        heapify(waiting)
        while waiting:
            _, group, batch = waiting[0]
            yield group, batch
            batch, count = batch + 1, self.counts[group]
            if batch < count:
                heapreplace(waiting, ((batch << shift) // count, group, batch))
            else:
                heappop(waiting)
