"""Bins: where sequences go in rows of fixed lengths, and the rows written in one piece."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import numpy as np

from aioloader._order.arguments import whole_number

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

__all__ = ["Bins", "PackingPlan", "Sequences", "check_lengths", "check_steps", "written"]


@final
@dataclass(frozen=True)
class PackingPlan:
    """What packing is asked to do: lengths of rows, how many there are, and who gets in where."""

    length_struct: Mapping[str, int]
    num_packing_bins: int
    best_fit: bool
    seed: int = 0
    shuffle_bins: bool = True
    group_by: str | None = None
    meta_features: tuple[str, ...] = ()
    alignments: Mapping[str, int] = field(default_factory=dict)
    padding: Mapping[str, Any] = field(default_factory=dict)
    max_sequences_per_bin: int | None = None

    def checked(self) -> Self:
        """Return this, or say which argument is wrong."""
        check_lengths(self.length_struct)
        whole_number("num_packing_bins", self.num_packing_bins, at_least=1)
        whole_number("seed", self.seed, at_least=0)
        if self.max_sequences_per_bin is not None:
            whole_number("max_sequences_per_bin", self.max_sequences_per_bin, at_least=1)
        for what, mapping in {"pack_alignment": self.alignments, "padding": self.padding}.items():
            _check_names(f"{what}_struct", mapping, self.length_struct)
        for name, alignment in self.alignments.items():
            whole_number(f"pack_alignment_struct[{name!r}]", alignment, at_least=1)
        if self.group_by is not None:
            _check_names("shuffle_bins_group_by_feature", [self.group_by], self.length_struct)
        return self

    @property
    def listed(self) -> list[str]:
        """The features that are handed through, as a list for each row."""
        return [name for name in self.meta_features if name not in self.length_struct]


def check_lengths(length_struct: Any) -> None:
    """Check that it has a length for each of one or more features."""
    if not isinstance(length_struct, Mapping) or not length_struct:
        raise ValueError(f"length_struct must be a mapping of features, got {length_struct!r}")
    for name, length in length_struct.items():
        whole_number(f"length_struct[{name!r}]", length, at_least=1)


def _check_names(argument: str, names: Any, known: Mapping[str, Any]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{argument}: {unknown[0]!r} is not in length_struct, {list(known)}")


@final
@dataclass(frozen=True, slots=True)
class Sequences:
    """An element to pack: its arrays, in the order of ``length_struct``, and their lengths."""

    arrays: list[np.ndarray]
    lengths: list[int]
    listed: dict[str, Any]

    @classmethod
    def of(cls, element: Any, plan: PackingPlan, like: Self | None) -> Self:
        """Take them out of an element, or say what is wrong with it, or beside ``like``."""
        if not isinstance(element, Mapping):
            raise ValueError(f"elements to pack must be dictionaries, got {type(element).__name__}")
        arrays, lengths, long = [], [], []
        for name, length in plan.length_struct.items():
            if name not in element:
                raise ValueError(f"length_struct has {name!r}, and an element has not")
            array = np.atleast_1d(np.asarray(element[name]))
            arrays.append(array)
            lengths.append(len(array))
            if len(array) > length:
                long.append(f"{name!r} has {len(array)} of at most {length}")
        if long:
            raise ValueError(f"sequences must be truncated before they are packed: {long}")
        if like is not None:
            check_steps(plan.length_struct, like.arrays, arrays)
        return cls(arrays, lengths, {k: element[k] for k in plan.listed if k in element})


def check_steps(
    names: Iterable[str], ones: Iterable[np.ndarray], others: Iterable[np.ndarray]
) -> None:
    """Check that sequences can be in one array."""
    for name, one, other in zip(names, ones, others, strict=True):
        if one.shape[1:] != other.shape[1:]:
            raise ValueError(
                f"{name!r} has sequences of shapes {one.shape} and {other.shape}, which differ in "
                "more than their first axis"
            )


@final
class Bins:
    """Rows that are filled: takes sequences, one by one, until one has no place."""

    def __init__(self, plan: PackingPlan) -> None:
        self._plan = plan
        bins, features = plan.num_packing_bins, plan.length_struct
        self._room = np.array(list(features.values()), dtype=np.int64)[:, None]
        align = [plan.alignments.get(name, 1) for name in features]
        self._align = None if set(align) == {1} else np.array(align, dtype=np.int64)
        self._used = np.zeros((len(features), bins), dtype=np.int64)
        self._counts = np.zeros(bins, dtype=np.int64)
        self._open = 0
        self.taken: list[Sequences] = []
        self._rows: list[int] = []
        self._segments: list[int] = []
        self._starts: list[list[int]] = []

    def take(self, sequences: Sequences) -> bool:
        """Give it a row, and return whether there was one."""
        width = min(self._open + 1, len(self._counts))  # all rows behind are as the last of these
        used = self._used[:, :width]
        ends = used + np.array(sequences.lengths, dtype=np.int64)[:, None]
        fits = np.all(ends <= self._room, axis=0)
        if self._plan.max_sequences_per_bin is not None:
            fits &= self._counts[:width] < self._plan.max_sequences_per_bin
        if self._plan.best_fit:
            row = int(np.where(fits, used.sum(axis=0), -1).argmax())
        else:
            row = int(fits.argmax())
        if not fits.item(row):
            return False
        end = ends[:, row]
        self._starts.append(used[:, row].tolist())
        self._rows.append(row)
        self._counts[row] += 1
        self._segments.append(int(self._counts[row]))
        self._used[:, row] = end if self._align is None else -(-end // self._align) * self._align
        self._open = max(self._open, row + 1)
        self.taken.append(sequences)
        return True

    def packed(self) -> dict[str, Any]:
        """Return all rows in use, each feature as one array with segment ids and positions."""
        plan, taken = self._plan, self.taken
        rows, segments = np.array(self._rows), np.array(self._segments, dtype=np.int32)
        starts = np.array(self._starts)
        result: dict[str, Any] = {}
        ids: dict[str, Any] = {}
        for k, (name, length) in enumerate(plan.length_struct.items()):
            offsets = rows * length + starts[:, k]
            columns = [sequences.arrays[k] for sequences in taken]
            shape = (self._open, length)
            padding = plan.padding.get(name)
            values, index, within = written(columns, offsets, shape, padding)
            result[name] = values
            if name not in plan.meta_features:
                numbers = np.zeros((2, self._open * length), np.int32)
                numbers[0, index] = np.repeat(segments, [len(column) for column in columns])
                numbers[1, index] = within
                ids[f"{name}_segment_ids"] = numbers[0].reshape(shape)
                ids[f"{name}_positions"] = numbers[1].reshape(shape)
        for name in plan.listed:
            lists: list[list[Any]] = [[] for _ in range(self._open)]
            for row, sequences in zip(self._rows, taken, strict=True):
                if name in sequences.listed:
                    lists[row].append(sequences.listed[name])
            result[name] = lists
        return result | ids

    def order(self, packed: dict[str, Any], number: int) -> NDArray[np.int64]:
        """Return in which order rows are delivered; ``number`` counts all rows before them."""
        plan = self._plan
        if not plan.shuffle_bins:
            return np.arange(self._open)
        shuffled = np.random.default_rng(plan.seed + number).permuted(np.arange(self._open))
        if plan.group_by is None:
            return shuffled
        groups = [np.unique(row) for row in packed[plan.group_by]]
        means = [group.sum() / max(np.count_nonzero(group), 1) for group in groups]
        return np.lexsort((shuffled, np.array(means)))


def written(
    columns: Sequence[np.ndarray], offsets: NDArray[np.int64], shape: Any, padding: Any
) -> tuple[np.ndarray, NDArray[np.int64], NDArray[np.int64]]:
    """Return sequences written at ``offsets`` into an array of ``shape``, all at once.

    Also the flat index of each of their steps there, and its position in its sequence.
    """
    first = columns[0]
    trailing = first.shape[1:]
    lengths = np.array([len(column) for column in columns])
    ends = np.cumsum(lengths)
    within = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    index = np.repeat(offsets, lengths) + within
    size = int(np.prod(shape))
    values = np.full((size, *trailing), 0 if padding is None else padding, dtype=first.dtype)
    values[index] = np.concatenate(columns, dtype=first.dtype, casting="unsafe")
    return values.reshape(*shape, *trailing), index, within
