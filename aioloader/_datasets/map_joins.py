"""Stages of a `MapDataset` with several parents: one chosen for each index, or all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import numpy as np

from aioloader._order.positions import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aioloader._datasets.transforms import DatasetSelectionMap
    from aioloader._order.positions import Positions

__all__ = ["Chosen", "Selection", "Zipped"]


@final
class Chosen:
    """Elements of several parents: ``mapping`` says which parent's, and at which index."""

    is_async = is_sparse = False
    is_identity = True

    def __init__(
        self, parents: Sequence[Any], mapping: Any, length: int, text: str, *, is_quick: bool = True
    ) -> None:
        self.parents = tuple(parents)
        self._mapping = mapping
        self._length = length
        self._text = text
        self.is_quick = is_quick

    def length(self) -> int:
        """Return the length that was settled when it was made."""
        return self._length

    def parent_indices(self, index: int) -> Sequence[tuple[int, int]]:
        """Return one of the parents, and an index there."""
        return (self._mapping.at(index),)

    def finish(self, index: int, elements: Sequence[Any]) -> Any:
        """Return the element as it is."""
        return elements[0]

    def element(self, index: int) -> Any:
        """Return the element of that parent."""
        part, place = self._mapping.at(index)
        try:
            return self.parents[part][place]
        except Exception as error:
            self.note(error, part, place)
            raise

    def note(self, error: Exception, part: int, place: int) -> None:
        """Add to an error which parent it is from."""
        error.add_note(f"in datasets[{part}] of {self._text}, at index {place}")

    def each(self, indices: Positions) -> Iterator[Any]:
        """Return many elements, each when it is its turn."""
        return map(self.element, plain(indices))

    def stacked(self, indices: Positions) -> Any:
        """Return many elements as one array, where the parents' ones fit together."""
        take = getattr(self._mapping, "take", None)
        if take is None or not len(indices):
            return None
        parts, places = take(indices)
        columns = []
        for part in np.unique(parts).tolist():
            here = np.flatnonzero(parts == part)
            column = self.parents[part]._stacked(places[here])
            if type(column) is not np.ndarray:
                return None
            columns.append((here, column))
        if len({(column.dtype, column.shape[1:]) for _, column in columns}) > 1:
            return None
        together = np.empty((len(parts), *columns[0][1].shape[1:]), columns[0][1].dtype)
        for here, column in columns:
            together[here] = column
        return together

    def __repr__(self) -> str:
        inside = ", ".join(parent._describe() for parent in self.parents)
        return f"{self._text}([{inside}])"


@final
class Selection:
    """A map of the user's: where elements of several parents lie."""

    def __init__(self, selection_map: DatasetSelectionMap, count: int) -> None:
        for name in ("__len__", "__getitem__"):
            if not hasattr(type(selection_map), name):
                raise TypeError(f"selection_map={selection_map!r} has no {name}")
        self._map = selection_map
        self._count = count

    def at(self, index: int) -> tuple[int, int]:
        """Return what the map says, checked."""
        part, place = self._map[index]
        if not 0 <= part < self._count:
            raise IndexError(
                f"selection_map[{index}] is {(part, place)}, and there are {self._count} datasets"
            )
        return part, place


@final
class Zipped:
    """The elements of all parents at the same index."""

    is_async = is_sparse = is_identity = False
    is_quick = True

    def __init__(self, parents: Sequence[Any]) -> None:
        lengths = [parent._length() for parent in parents]
        if not lengths:
            raise ValueError("parents is empty: there is nothing to zip")
        if len(set(lengths)) > 1:
            raise ValueError(f"parents must have the same length, and have the lengths {lengths}")
        self.parents = tuple(parents)
        self._length: int | None = lengths[0]

    def length(self) -> int | None:
        """Return the length of all of them."""
        return self._length

    def parent_indices(self, index: int) -> Sequence[tuple[int, int]]:
        """Return the same index of each parent."""
        return [(part, index) for part in range(len(self.parents))]

    def finish(self, index: int, elements: Sequence[Any]) -> Any:
        """Return them as a tuple."""
        return tuple(elements)

    def element(self, index: int) -> Any:
        """Return the parents' elements as a tuple."""
        return tuple([parent[index] for parent in self.parents])

    def each(self, indices: Positions) -> Iterator[Any]:
        """Return many tuples, each when it is its turn."""
        return zip(*(parent._each(indices) for parent in self.parents), strict=True)

    def stacked(self, indices: Positions) -> Any:
        """Return a tuple of arrays, where all parents have them."""
        columns = []
        for parent in self.parents:
            column = parent._stacked(indices)
            if column is None:
                return None
            columns.append(column)
        return tuple(columns)

    def __repr__(self) -> str:
        return f"zip([{', '.join(parent._describe() for parent in self.parents)}])"
