"""Declarations: read what a user says of arrays, and lay them out; workers need none of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401  (registers bfloat16, float8 and int4 with numpy, by name)
import numpy as np

from aioloader.errors import LayoutError
from aioloader.protocols import ArrayLayout

if TYPE_CHECKING:
    from aioloader.protocols import Layouts

__all__ = ["ALIGNMENT", "make_layouts"]

ALIGNMENT = 64
"""JAX takes an array over without a copy only when it starts on a multiple of this."""


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
