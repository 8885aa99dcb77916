"""One epoch of one group: which rows make up each of its batches, and their seeds."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple, final

import numpy as np

from aioloader.protocols import Seeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from aioloader._order.permutation import Permutation

__all__ = ["GroupBatch", "GroupEpoch", "counter"]

_POSITIONS_AT_ONCE = 4096  # permuted in one go: NumPy's cost per call is shared by them
_BATCHES_AT_ONCE = 256


def counter(value: int) -> int:
    """Reduce a count to the 63 bits in which :class:`~aioloader.protocols.Seeds` counts.

    >>> counter(2**63 + 5)
    5
    """
    return value % (1 << 63)


class GroupBatch(NamedTuple):
    """What a ticket says that only its group knows: its last four fields, in their order."""

    group_index: int
    indices: range | np.ndarray
    seed: int | None
    seeds: Seeds | None


@final
@dataclass(frozen=True, slots=True)
class GroupEpoch:
    """The batches of one epoch of a group, in order.

    ``items`` permutes the rows before they are cut into batches and ``batches`` the
    batches after that; None leaves the order as it is. ``batch_seeds`` and ``item_seeds``
    are the seeds of all batches and of all rows of the epoch as they lie *before*
    ``batches`` moves them; None where there are none.

    >>> epoch = GroupEpoch(length=5, batch_size=2, batch_count=3)
    >>> [batch.indices for batch in epoch.read(start=1)]
    [range(2, 4), range(4, 5)]
    >>> epoch[2].group_index
    2
    """

    length: int
    batch_size: int
    batch_count: int
    items: Permutation | None = None
    batches: Permutation | None = None
    batch_seeds: Seeds | None = None
    item_seeds: Seeds | None = None

    def __len__(self) -> int:
        return self.batch_count

    def __getitem__(self, number: int) -> GroupBatch:
        """Return one batch by random access, in the time that takes its rows alone."""
        number = range(self.batch_count)[number]
        return next(self._block(number, number + 1))

    def read(self, start: int = 0) -> Iterator[GroupBatch]:
        """Yield the batches from ``start`` on, working them out a block at a time.

        Indices are views of their block: each keeps 32 KiB, or its own rows if they are
        more.
        """
        step = self._batches_at_once()
        for first in range(start, self.batch_count, step):
            yield from self._block(first, min(first + step, self.batch_count))

    def _batches_at_once(self) -> int:
        if self.items is None:
            return _BATCHES_AT_ONCE
        return max(1, min(_BATCHES_AT_ONCE, _POSITIONS_AT_ONCE // self.batch_size))

    def _block(self, start: int, stop: int) -> Iterator[GroupBatch]:
        """Work out the batches from ``start`` to ``stop - 1``."""
        chosen: Sequence[int] = range(start, stop)
        if self.batches is not None:
            chosen = self.batches.take(start, stop).tolist()
        items = self.items
        indices = self._ranges(chosen) if items is None else self._permuted(items, chosen)
        return map(GroupBatch, chosen, indices, self._seeds(chosen), self._row_seeds(chosen))

    def _ranges(self, chosen: Sequence[int]) -> Iterator[range]:
        for index in chosen:
            start = index * self.batch_size
            yield range(start, start + self._rows(index))

    def _permuted(self, items: Permutation, chosen: Sequence[int]) -> Iterator[np.ndarray]:
        """Map the rows of the chosen batches through ``items``, all at once.

        The batches are the rows of a matrix. Where the last one is short, the rest of its
        row repeats the last position, and is cut off again.
        """
        width = min(self.batch_size, self.length)
        starts = np.asarray(chosen, dtype=np.int64) * width
        positions = starts[:, np.newaxis] + np.arange(width, dtype=np.int64)
        np.minimum(positions, self.length - 1, out=positions)
        block = items.at(positions)
        block.flags.writeable = False  # a ticket is a value, and neighbours share the block
        for index, rows in zip(chosen, block, strict=True):
            yield rows[: self._rows(index)]

    def _rows(self, index: int) -> int:
        return min(self.batch_size, self.length - index * self.batch_size)

    def _seeds(self, chosen: Sequence[int]) -> Iterable[int | None]:
        return repeat(None) if self.batch_seeds is None else self.batch_seeds.take(chosen)

    def _row_seeds(self, chosen: Sequence[int]) -> Iterator[Seeds | None]:
        if self.item_seeds is None:
            yield from repeat(None)
            return
        key, origin = self.item_seeds.key, self.item_seeds.start
        for index in chosen:
            yield Seeds(key, counter(origin + index * self.batch_size), self._rows(index))
