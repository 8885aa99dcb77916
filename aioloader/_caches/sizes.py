"""Sizes: how many bytes of memory a value keeps."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np

__all__ = ["data_size"]

_SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType, np.dtype, type(None), bool)
_PLAIN = (int, float, complex, str, bytes, bytearray, np.generic)
_COLLECTIONS = (list, tuple, set, frozenset, deque)


def data_size(data: object, seen: set[int] | None = None) -> int:
    """Return the bytes that ``data`` keeps in memory, headers included.

    Every object counts once, however often it is referred to, and so does an array that
    others are views of; a view of a part keeps the whole. Arrays of other libraries count
    by their ``nbytes``, wherever those lie; a mapped file counts as if it had been read.
    ``seen`` holds the ids of what has been counted, and gets those of what is counted now.

    >>> array = np.zeros(1000)
    >>> 8000 < data_size(array) == data_size([array, array]) - data_size([None, None]) < 8200
    True
    >>> data_size({"all": array, "some": array[:10]}) < 9000
    True
    """
    seen = set() if seen is None else seen
    total = 0
    pending: list[object] = [data]
    while pending:
        value = pending.pop()
        if id(value) in seen or isinstance(value, _SHARED):
            continue
        seen.add(id(value))
        total += _own(value, seen)
        pending.extend(_parts(value))
    return total


def _own(value: Any, seen: set[int]) -> int:
    size = sys.getsizeof(value, 0)
    if isinstance(value, np.ndarray):
        holder = _holder(value)
        if not isinstance(holder, np.ndarray | bytes | bytearray) and id(holder) not in seen:
            seen.add(id(holder))
            size += _outermost(value).nbytes
    elif not isinstance(value, np.generic | memoryview) and not _knows_its_size(value):
        nbytes: Any = getattr(value, "nbytes", 0)
        size += nbytes if isinstance(nbytes, int) else 0
    return size


def _parts(value: Any) -> Iterable[object]:
    if isinstance(value, _PLAIN):
        return ()
    if isinstance(value, np.ndarray):
        holder = _holder(value)
        elements = list(value.flat) if value.dtype == object else []
        keeps = holder is not value and isinstance(holder, np.ndarray | bytes | bytearray)
        return [*elements, holder] if keeps else elements
    if isinstance(value, memoryview):
        return (value.obj,)
    if isinstance(value, Mapping):
        return (*value.keys(), *value.values())
    if isinstance(value, _COLLECTIONS):
        return (*value, *_attributes(value))
    if hasattr(value, "nbytes") or _knows_its_size(value):
        return ()  # its parts have been counted with it
    return _attributes(value)


def _knows_its_size(value: object) -> bool:
    sizeof: object = type(value).__sizeof__
    return sizeof is not object.__sizeof__


def _outermost(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _holder(array: np.ndarray) -> object:
    """Return what has the array's memory: an array, perhaps itself, or what it is a view of."""
    outermost = _outermost(array)
    holder: Any = outermost if outermost.base is None else outermost.base
    return holder.obj if type(holder) is memoryview else holder


def _attributes(value: object) -> Iterator[object]:
    attributes = getattr(value, "__dict__", None)
    if attributes:
        yield attributes
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{kind.__name__.lstrip('_')}{name}"
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield getattr(value, name)
