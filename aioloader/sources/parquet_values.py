"""Values of Parquet columns, one row at a time: NumPy's where it has them, else Python's."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["getter", "pyarrow"]


def pyarrow() -> Any:
    """Return ``pyarrow`` with its Parquet part; raises ImportError that names the extra."""
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise ImportError(
            "Parquet files are read with pyarrow: pip install 'aioloader[parquet,remote]'"
        ) from error


def getter(array: Any) -> Callable[[int], Any]:
    """Return the function from a row to its value, for one column as an Arrow array.

    What it returns does not keep the array. A null is None; numbers, truth values, dates,
    timestamps (of UTC) and durations are NumPy scalars; texts and binaries ``str`` and
    ``bytes``; lists of numbers, also nested ones of fixed lengths, are arrays, where there is
    no null among them, and other lists are lists; structs are dicts; the rest is what
    pyarrow's ``as_py`` gives.
    """
    pa = pyarrow()
    array = _plain(pa, array)
    kind = array.type
    if _is_scalar(pa, kind):
        return _scalars(array)
    if pa.types.is_struct(kind):
        names = [kind.field(number).name for number in range(kind.num_fields)]
        return _structs(array, dict(zip(names, map(getter, array.flatten()), strict=True)))
    if isinstance(kind, pa.FixedShapeTensorType):
        return _unless_null(array, lambda scalar: np.array(scalar.to_numpy()))
    if _is_list(pa, kind):
        return _unless_null(array, lambda scalar: _whole(pa, scalar.values))
    return lambda row: array[row].as_py()


def _plain(pa: Any, array: Any) -> Any:
    """Return an array without what only says how it is stored."""
    if isinstance(array.type, pa.BaseExtensionType):
        if isinstance(array.type, pa.FixedShapeTensorType):
            return array
        return _plain(pa, array.storage)
    if pa.types.is_dictionary(array.type):
        return _plain(pa, array.dictionary_decode())
    if pa.types.is_date64(array.type):
        return array.cast(pa.timestamp("ms"))
    return array


def _is_scalar(pa: Any, kind: Any) -> bool:
    types = pa.types
    return bool(
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
        or types.is_date32(kind)
        or types.is_timestamp(kind)
        or types.is_duration(kind)
    )


def _is_list(pa: Any, kind: Any) -> bool:
    types = pa.types
    return bool(
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
        or types.is_large_list_view(kind)
    )


def _scalars(array: Any) -> Callable[[int], Any]:
    if not array.null_count:
        values = array.to_numpy(zero_copy_only=False)
        return lambda row: values[row]
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    # Nulls of integers would make them floats.
    whole = array.drop_null().to_numpy(zero_copy_only=False)
    places = np.cumsum(valid) - 1
    return lambda row: whole[places[row]] if valid[row] else None


def _structs(array: Any, fields: dict[str, Callable[[int], Any]]) -> Callable[[int], Any]:
    valid = array.is_valid().to_numpy(zero_copy_only=False)

    def get(row: int) -> Any:
        return {name: field(row) for name, field in fields.items()} if valid[row] else None

    return get


def _unless_null(array: Any, convert: Callable[[Any], Any]) -> Callable[[int], Any]:
    def get(row: int) -> Any:
        scalar = array[row]
        return convert(scalar) if scalar.is_valid else None

    return get


def _whole(pa: Any, array: Any) -> Any:
    """Return all elements of a list: as an array where they are numbers, else as a list."""
    array = _plain(pa, array)
    kind = array.type
    if not array.null_count:
        if _is_scalar(pa, kind):
            return np.array(array.to_numpy(zero_copy_only=False))
        if pa.types.is_fixed_size_list(kind):
            inner = _whole(pa, array.flatten())
            if isinstance(inner, np.ndarray):
                return inner.reshape(len(array), kind.list_size, *inner.shape[1:])
    get = getter(array)
    return [get(row) for row in range(len(array))]
