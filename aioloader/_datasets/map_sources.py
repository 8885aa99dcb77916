"""Sources: where the elements of a `MapDataset` come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import numpy as np

from aioloader._datasets.transforms import is_coroutine
from aioloader._order.positions import as_array, integers, plain, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aioloader._order.positions import Positions

__all__ = ["RangeSource", "Source"]

_SHORT = 12
_IN_MEMORY = (list, tuple, range, str, bytes, np.ndarray)


@final
class Source:
    """Elements of any object with ``__len__`` and ``__getitem__``, at indices modulo its length.

    Where it has ``__getitems__`` or ``_getitems``, batches get their elements by one call of
    that; where it is an array of numbers, they are gathered by one call of NumPy.
    """

    parents: tuple[Any, ...] = ()
    is_sparse = False
    is_identity = False

    def __init__(self, source: Any) -> None:
        for name in ("__len__", "__getitem__"):
            if not hasattr(source, name):
                raise TypeError(f"source={source!r} has no {name}")
        self._source = source
        self._length: int | None = None
        self.is_async = is_coroutine(source.__getitem__)
        self.is_quick = type(source) in _IN_MEMORY

    def length(self) -> int | None:
        """Return how long the source is; None where it does not know."""
        length = self._length
        if length is None:
            length = self._length = self._source.__len__()
        return length

    def parent_indices(self, index: int) -> Sequence[tuple[int, int]]:
        """There are no parents."""
        return ()

    def finish(self, index: int, elements: Sequence[Any]) -> Any:
        """Return the element, or what has to be awaited for it."""
        return self.element(index)

    def element(self, index: int) -> Any:
        """Return the element at ``index``."""
        length = self._length
        if length is None:
            length = self.length()
            if length is None:
                return self._source[index]
        if not 0 <= index < length:
            index = wrapped(index, length)[1]
        return self._source[index]

    def each(self, indices: Positions) -> Iterator[Any]:
        """Return the elements at many indices."""
        batched = getattr(self._source, "__getitems__", None) or getattr(
            self._source, "_getitems", None
        )
        if batched is None or self.is_async:
            return map(self.element, plain(indices))
        length = self.length()
        places = plain(indices)
        if length is not None:
            places = [wrapped(index, length)[1] for index in places]
        elements = batched(places)
        if len(elements) != len(places):
            raise ValueError(
                f"source={self._source!r} returned {len(elements)} elements for {len(places)} "
                "indices that it was given at once"
            )
        return iter(elements)

    def stacked(self, indices: Positions) -> Any:
        """Return the elements at many indices as one array, or None where they are none."""
        array = self._source
        if type(array) not in (np.ndarray, np.memmap) or array.ndim == 0 or not len(array):
            return None
        # Strings are as long as the longest of a batch, and objects may be anything.
        if array.dtype.kind not in "biufcmM" or not array.dtype.isnative:
            return None
        places = as_array(indices)
        try:
            return np.asarray(array).take(places, axis=0)
        except (IndexError, TypeError):  # they are past the end, or beyond NumPy's integers
            places = (places % len(array)).astype(np.intp)
            return np.asarray(array).take(places, axis=0)

    def __repr__(self) -> str:
        # That of a long list takes long, and nobody would see it.
        is_long = self.is_quick and len(self._source) > _SHORT
        shown = "" if is_long else repr(self._source)
        if not 0 < len(shown) <= 40:
            shown = f"<{type(self._source).__name__}>"
        return f"source({shown})"


@final
class RangeSource:
    """The numbers of a range."""

    parents: tuple[Any, ...] = ()
    is_sparse = False
    is_identity = False
    is_async = False
    is_quick = True

    def __init__(self, numbers: range) -> None:
        self._numbers = numbers

    def length(self) -> int:
        """Return how many numbers there are."""
        return len(self._numbers)

    def parent_indices(self, index: int) -> Sequence[tuple[int, int]]:
        """There are no parents."""
        return ()

    def finish(self, index: int, elements: Sequence[Any]) -> int:
        """Return the number."""
        return self.element(index)

    def element(self, index: int) -> int:
        """Return the number at ``index``."""
        return self._numbers[wrapped(index, len(self._numbers))[1]]

    def each(self, indices: Positions) -> Iterator[int]:
        """Return the numbers at many indices."""
        return map(self.element, plain(indices))

    def stacked(self, indices: Positions) -> Any:
        """Return the numbers at many indices as one array."""
        numbers = integers(self.each(indices))
        return None if numbers.dtype == object else numbers

    def __repr__(self) -> str:
        numbers = self._numbers
        return f"range({numbers.stop})" if numbers == range(numbers.stop) else repr(numbers)
