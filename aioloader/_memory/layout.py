"""Layouts: where the named arrays of a batch lie in the bytes of one slot, and views of them."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioloader.protocols import Arrays, Layouts

__all__ = ["KEPT_ROWS", "RowViews", "layout_bytes", "take_rows", "view"]

KEPT_ROWS = 16384
"""How many rows have their views kept: about ten megabytes of them in a process."""


def layout_bytes(layouts: Layouts) -> int:
    """Return the size in bytes of a batch, padding between its arrays included.

    >>> from aioloader._memory.declaring import make_layouts
    >>> layout_bytes(make_layouts({"x": ((), "int8", "int8"), "y": ((), "int8", "int8")}, 5, "a"))
    69
    """
    return max((a.offset + a.count * a.numpy_dtype.itemsize for a in layouts.values()), default=0)


def take_rows(layouts: Layouts, rows: int) -> Layouts:
    """Return the layouts of a batch that fills only the first ``rows`` rows."""
    return MappingProxyType(
        {
            name: a._replace(shape=(rows, *a.shape[1:]), count=rows * math.prod(a.shape[1:]))
            for name, a in layouts.items()
        }
    )


def view(buffer: Any, layouts: Layouts, base: int = 0) -> dict[str, np.ndarray]:
    """Return arrays over ``buffer``, whose slot starts ``base`` bytes into it."""
    arrays = {}
    for name, a in layouts.items():
        flat = np.frombuffer(buffer, a.numpy_dtype, a.count, base + a.offset)
        arrays[name] = flat.reshape(a.shape)
    return arrays


@final
class RowViews:
    """Views of single rows, made once and kept, because making them costs more than tiny items.

    A row is a read-only mapping, so that ``arrays["x"] = value``, which would write nowhere,
    raises instead. Batches of more than ``spare`` rows are not kept: their views would outweigh
    them. ``kept`` is how many are.
    """

    __slots__ = ("_arrays", "_names", "_rows", "kept")

    def __init__(self, arrays: Arrays, spare: int = KEPT_ROWS) -> None:
        self._arrays = arrays
        self._names = tuple(arrays)
        self._rows: list[Arrays] | None = None
        count = min((len(a) for a in arrays.values()), default=0)
        self.kept = count if count <= spare else 0

    def row(self, index: int) -> Arrays:
        """Return views of row ``index``, without the batch dimension."""
        return self._make((index,))[0]

    def take(self, rows: Sequence[int]) -> Sequence[Arrays]:
        """Return the same for each of ``rows``."""
        if not self.kept:
            return self._make(rows)
        if self._rows is None:
            self._rows = self._make(range(self.kept))
        if isinstance(rows, range) and rows.step == 1:
            return self._rows[rows.start : rows.stop]
        return [self._rows[row] for row in rows]

    def span(self, start: int, stop: int) -> Arrays:
        """Return views of rows ``start`` to ``stop``, with that leading dimension."""
        return MappingProxyType({name: a[start:stop] for name, a in self._arrays.items()})

    def _make(self, rows: Sequence[int]) -> list[Arrays]:
        columns = [_row_views(array, rows) for array in self._arrays.values()]
        if len(columns) == 1:  # a third of what the next line takes
            (name,) = self._names
            return [MappingProxyType({name: view}) for view in columns[0]]
        names = self._names
        return [MappingProxyType(dict(zip(names, views))) for views in zip(*columns)]  # noqa: B905


def _row_views(array: np.ndarray, rows: Sequence[int]) -> list[np.ndarray]:
    if array.ndim > 1 and isinstance(rows, range) and rows.step == 1:
        return list(array[rows.start : rows.stop])
    # `array[row, ...]` and never `array[row]`, which would be a copy of a scalar field.
    return [array[row, ...] for row in rows]
