"""Other orders of what is there: slices, repetitions, concatenations and mixtures of datasets."""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from aioloader._order.arguments import whole_number
from aioloader._order.positions import as_array, integers, plain, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from aioloader._order.positions import Positions

__all__ = [
    "ENDLESS",
    "Batches",
    "Concatenation",
    "Mixture",
    "Same",
    "Slice",
    "Wrapped",
    "as_shares",
    "repeated_length",
]

ENDLESS = sys.maxsize
"""The length of a dataset without an end."""

_BEYOND = 1 << 62


def _are_within(indices: NDArray[Any], bound: int) -> bool:
    """Tell whether arithmetic in NumPy's integers is exact for indices below ``bound``."""
    if indices.dtype == object or not len(indices):
        return False
    return -bound < int(indices.min()) and int(indices.max()) < bound


@final
@dataclass(frozen=True, slots=True)
class Same:
    """Each index is its own."""

    def at(self, index: int) -> int:
        """Return the parent's index."""
        return index

    def take(self, indices: Positions) -> Positions:
        """Return the same for many indices."""
        return indices


@final
@dataclass(frozen=True, slots=True)
class Wrapped:
    """Every epoch is the parent's first one.

    >>> Wrapped(5).at(12)
    2
    """

    length: int

    def at(self, index: int) -> int:
        """Return the parent's index."""
        return wrapped(index, self.length)[1]

    def take(self, indices: Positions) -> Positions:
        """Return the same for many indices."""
        places: NDArray[Any] = as_array(indices) % self.length
        return places


@final
@dataclass(frozen=True, slots=True)
class Slice:
    """The positions of a slice; its n-th epoch has those of the parent's n-th epoch.

    >>> odd = Slice.of(slice(1, None, 2), 6)
    >>> len(odd), [odd.at(index) for index in range(5)]
    (3, [1, 3, 5, 7, 9])
    """

    within: range
    parent_length: int

    @classmethod
    def of(cls, sl: slice, parent_length: int) -> Slice:
        """Return what ``sl`` means for a parent of that length."""
        return cls(range(*sl.indices(parent_length)), parent_length)

    def __len__(self) -> int:
        return len(self.within)

    def at(self, index: int) -> int:
        """Return the parent's index."""
        epoch, position = wrapped(index, len(self.within))
        return self.within[position] + epoch * self.parent_length

    def take(self, indices: Positions) -> Positions:
        """Return the same for many indices."""
        count = len(self.within)
        if isinstance(indices, range) and len(indices):
            (first, start), (last, _) = wrapped(indices[0], count), wrapped(indices[-1], count)
            if first == last:
                step = self.within.step * indices.step
                begin = self.within[start] + first * self.parent_length
                return range(begin, begin + len(indices) * step, step)
        indices = as_array(indices)
        bound = _BEYOND // (self.parent_length // max(count, 1) + 2)
        if self.parent_length >= _BEYOND >> 2 or not _are_within(indices, bound):
            return integers(self.at(index) for index in plain(indices))
        epochs = indices // count
        places: NDArray[Any] = indices - epochs * count
        places *= self.within.step
        places += self.within.start + epochs * self.parent_length
        return places


@final
@dataclass(frozen=True, slots=True)
class Concatenation:
    """One part after the other; its n-th epoch is the n-th epoch of each part.

    >>> both = Concatenation.of([2, 3])
    >>> [both.at(index) for index in range(7)]
    [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (0, 2), (0, 3)]
    """

    lengths: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Concatenation:
        """Lay parts of these lengths out."""
        for part, length in enumerate(lengths):
            if length >= ENDLESS:
                raise ValueError(f"datasets[{part}] is infinite: nothing can come after it")
        ends = np.cumsum(np.array([0, *lengths], dtype=object))[1:].tolist()
        if ends and ends[-1] >= ENDLESS:
            raise ValueError(f"datasets have {ends[-1]} elements together, which is too many")
        return cls(tuple(lengths), tuple(ends))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def at(self, index: int) -> tuple[int, int]:
        """Return the part, and the index there."""
        epoch, position = wrapped(index, len(self))
        part = bisect_right(self.ends, position)
        length = self.lengths[part]
        return part, position - self.ends[part] + length + epoch * length

    def take(self, indices: Positions) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the same for many indices: the parts, and the indices there."""
        exact = as_array(indices)
        if not _are_within(exact, _BEYOND) or len(self) >= _BEYOND:
            return _columns(self.at(index) for index in plain(exact))
        epochs = exact // len(self)
        positions = exact - epochs * len(self)
        parts = np.searchsorted(np.array(self.ends), positions, side="right")
        lengths = np.array(self.lengths)[parts]
        return parts, positions - np.array(self.ends)[parts] + lengths + epochs * lengths


@final
@dataclass(frozen=True, slots=True)
class Mixture:
    """Elements of several datasets in fixed proportions, evenly spread.

    Of the first ``k`` elements, the first part has its share, rounded up; the others divide
    what it leaves in the same way. There are no epochs: indices of the parts go on and on.

    >>> mixture = Mixture((200, 100))
    >>> [mixture.at(index) for index in range(6)]
    [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (1, 1)]
    >>> mixture.length([10, 10])
    15
    """

    shares: tuple[int, ...]

    def length(self, lengths: Sequence[int]) -> int:
        """Return how many elements there are until a part of one of these lengths is used up."""
        total = sum(self.shares)
        counts = [n * total // share for n, share in zip(lengths, self.shares, strict=True)]
        return min(ENDLESS, *counts)

    def at(self, index: int) -> tuple[int, int]:
        """Return the part, and the index there."""
        left = sum(self.shares)
        for part, share in enumerate(self.shares):
            others = index * (left - share) // left
            if (index + 1) * (left - share) // left == others:
                return part, index - others
            index = others
            left -= share
        raise AssertionError("the last part takes what the others leave")

    def take(self, indices: Positions) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the same for many indices: the parts, and the indices there."""
        rest, left = as_array(indices), sum(self.shares)
        if not _are_within(rest, _BEYOND // left):
            return _columns(self.at(index) for index in plain(rest))
        parts, places = np.empty(len(rest), np.int64), np.empty(len(rest), np.int64)
        todo = np.arange(len(rest))
        for part, share in enumerate(self.shares):
            others = rest * (left - share) // left
            here = (rest + 1) * (left - share) // left == others
            parts[todo[here]] = part
            places[todo[here]] = (rest - others)[here]
            todo, rest = todo[~here], others[~here]
            left -= share
        return parts, places


def _columns(pairs: Iterable[tuple[int, int]]) -> tuple[NDArray[Any], NDArray[Any]]:
    exact = list(pairs)
    return integers(part for part, _ in exact), integers(place for _, place in exact)


def as_shares(weights: Sequence[float] | None, count: int) -> tuple[int, ...]:
    """Return weights as whole numbers of which the least is 100, as Grain does.

    >>> as_shares([0.001, 0.5, 0.499], 3), as_shares(None, 2)
    ((100, 50000, 49900), (1, 1))
    """
    if weights is None:
        return (1,) * count
    if len(weights) != count:
        raise ValueError(
            f"weights={list(weights)} are {len(weights)}, and there are {count} datasets"
        )
    for position, weight in enumerate(weights):
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"weights[{position}] must be above 0 and finite, got {weight!r}")
    return tuple(int(weight * 100 / min(weights)) for weight in weights)


def repeated_length(length: int, num_epochs: int | None) -> int:
    """Return how long a dataset of ``length`` is when it is repeated.

    >>> repeated_length(5, 2), repeated_length(5, None) == ENDLESS, repeated_length(0, None)
    (10, True, 0)
    """
    if num_epochs is not None:
        num_epochs = whole_number("num_epochs", num_epochs, at_least=1)
    if length >= ENDLESS:
        raise ValueError("the dataset is infinite already, and cannot be repeated")
    if num_epochs is None:
        return ENDLESS if length else 0
    return min(ENDLESS, length * num_epochs)


@final
@dataclass(frozen=True, slots=True)
class Batches:
    """Runs of ``size`` elements; each epoch of the parent is cut up on its own.

    >>> batches = Batches(5, 2, False)
    >>> len(batches), [batches.at(index) for index in range(4)]
    (3, [range(0, 2), range(2, 4), range(4, 5), range(5, 7)])
    """

    parent_length: int
    size: int
    drop_remainder: bool

    def __post_init__(self) -> None:
        whole_number("batch_size", self.size, at_least=1)

    def __len__(self) -> int:
        whole, rest = divmod(self.parent_length, self.size)
        return whole + (1 if rest and not self.drop_remainder else 0)

    def at(self, index: int) -> range:
        """Return the indices of the parent's elements."""
        epoch, position = wrapped(index, len(self))
        start = position * self.size
        stop = min(start + self.size, self.parent_length)
        offset = epoch * self.parent_length
        return range(offset + start, offset + stop)
