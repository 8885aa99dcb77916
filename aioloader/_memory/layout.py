"""Layouts: how named arrays of a batch lie in the bytes of one slot."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, final

import ml_dtypes  # noqa: F401  (registers bfloat16, float8 and int4 with numpy, by name)
import numpy as np

from aioloader.errors import LayoutError
from aioloader.protocols import ArrayLayout, Arrays, Layouts

__all__ = ["KEPT_ROWS", "RowViews", "layout_bytes", "make_layouts", "take_rows", "view"]

ALIGNMENT = 64
"""JAX takes an array over without a copy only when it starts on a multiple of this."""

KEPT_ROWS = 16384
"""How many rows have their views kept: about ten megabytes of them in a process."""


def make_layouts(arrays: Mapping[str, Any], batch_size: int, parameter: str) -> Layouts:
    """Lay out ``{name: (shape, numpy_dtype, jax_dtype)}`` for ``batch_size`` rows.

    Every array starts on a 64-byte boundary. Raises :class:`LayoutError`, naming
    ``parameter`` and the array, for anything that is not such a mapping.

    >>> layouts = make_layouts({"x": ((3,), "uint8", "float32")}, 2, "loader_arrays")
    >>> layouts["x"]
    ArrayLayout(shape=(2, 3), numpy_dtype=dtype('uint8'), jax_dtype=dtype('float32'), offset=0, count=6)
    """  # noqa: E501
    if not isinstance(arrays, Mapping):
        raise LayoutError(f"{parameter} must map names to arrays, got {arrays!r}")
    if not arrays:
        raise LayoutError(f"{parameter} is empty: a batch needs at least one array")
    layouts: dict[str, ArrayLayout] = {}
    offset = 0
    for name, entry in arrays.items():
        shape, numpy_dtype, jax_dtype = _entry(parameter, name, entry)
        shape = (batch_size, *shape)
        count = math.prod(shape)
        layouts[name] = ArrayLayout(shape, numpy_dtype, jax_dtype, offset, count)
        offset += _aligned(count * numpy_dtype.itemsize)
    return MappingProxyType(layouts)


def layout_bytes(layouts: Layouts) -> int:
    """Return the size in bytes of a batch, padding between its arrays included.

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


def _entry(
    parameter: str, name: object, entry: object
) -> tuple[tuple[int, ...], np.dtype[Any], np.dtype[Any]]:
    if not isinstance(name, str):
        raise LayoutError(f"{parameter}: array names are strings, got {name!r}")
    if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != 3:
        raise LayoutError(
            f"{parameter}[{name!r}] must be (shape, numpy_dtype, jax_dtype), got {entry!r}"
        )
    where = f"{parameter}[{name!r}]"
    return _shape(where, entry[0]), _dtype(where, entry[1]), _dtype(where, entry[2])


def _shape(where: str, shape: object) -> tuple[int, ...]:
    try:
        assert isinstance(shape, Iterable)
        sizes = tuple(operator.index(size) for size in shape)
    except (AssertionError, TypeError):
        raise LayoutError(f"{where}: the shape must be a tuple of sizes, got {shape!r}") from None
    if any(size < 0 for size in sizes):
        raise LayoutError(f"{where}: sizes must not be negative, got {sizes}")
    return sizes


def _dtype(where: str, dtype: Any) -> np.dtype[Any]:
    try:
        resolved: np.dtype[Any] = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise LayoutError(f"{where}: {dtype!r} is not a dtype ({error})") from None
    # ml_dtypes' numbers have kind "V" like structures do, but are not void.
    known = resolved.kind in "biufcV" and resolved.type not in (np.longdouble, np.clongdouble)
    known = known and (resolved.kind == "V" or resolved.isnative)
    if not known or resolved.type is np.void or dtype is None:
        raise LayoutError(
            f"{where}: dtype {dtype!r} cannot be an array in JAX; return strings, objects and "
            "ragged values from `load` instead, and they arrive in `batch.additional`"
        )
    return resolved


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
