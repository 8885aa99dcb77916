"""Keeping: a value as a private copy, from which any number of consumers get theirs.

Whoever made a value may still write to it, and so may whoever is handed one. So an array is
copied once, when it is kept, and handed out as a new read-only view; containers are copied when
they are handed out, which is cheap, and leaves them the types that they have. What is known to
be immutable is handed out as it is, and what is not known at all is copied deeply, both times.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import pathlib
import sys
import types
import uuid
from collections import OrderedDict, defaultdict
from typing import Any, Protocol, cast, final

import numpy as np

__all__ = ["Gone", "Kept", "Unkeepable", "is_light", "keep"]

_IMMUTABLE = (
    *(type(None), bool, int, float, complex, str, bytes, range, np.generic, np.dtype),
    *(enum.Enum, pathlib.PurePath, decimal.Decimal, fractions.Fraction, uuid.UUID),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo),
    *(type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type(Ellipsis)),
)
_DICTS = (dict, OrderedDict, defaultdict)
_SETS = (set, bytearray)
_ALIGNED_FROM, _ALIGNMENT = 8192, 64
_LIGHT_BYTES, _LIGHT_PARTS = 256 << 10, 256


class Unkeepable(TypeError):
    """A value that cannot be copied, and so cannot be kept safely."""


class Gone(Exception):
    """What was kept has been taken from under the cache: a donated ``jax.Array``."""


class Kept(Protocol):
    """What is kept of a value."""

    def make(self) -> Any:
        """Return the value, as one consumer's own."""


@final
@dataclasses.dataclass(slots=True)
class _Same:
    value: Any

    def make(self) -> Any:
        return self.value


@final
@dataclasses.dataclass(slots=True)
class _Array:
    owner: np.ndarray

    def make(self) -> np.ndarray:
        # A new view each time: a consumer may set the shape of its own. The owner is read-only,
        # too, so that nobody can make the view writable.
        return self.owner.view()


@final
@dataclasses.dataclass(slots=True)
class _Device:
    array: Any

    def make(self) -> Any:
        if self.array.is_deleted():
            raise Gone
        return self.array


@final
@dataclasses.dataclass(slots=True)
class _Copied:
    value: Any

    def make(self) -> Any:
        return self.value.copy()


@final
@dataclasses.dataclass(slots=True)
class _Deep:
    value: Any

    def make(self) -> Any:
        return copy.deepcopy(self.value)


@final
@dataclasses.dataclass(slots=True)
class _Container:
    """A dict or a list: all that is immutable in it is copied at once, the rest is made."""

    plain: Any
    parts: list[tuple[Any, Kept]]

    def make(self) -> Any:
        made = self.plain.copy()
        for key, part in self.parts:
            made[key] = part.make()
        return made


@final
@dataclasses.dataclass(slots=True)
class _Tuple:
    kind: Any
    inner: Kept

    def make(self) -> Any:
        return self.kind(self.inner.make())


@final
@dataclasses.dataclass(slots=True)
class _Object:
    """A dataclass instance: a shallow copy, of which the mutable attributes are made."""

    plain: Any
    parts: list[tuple[Any, Kept]]

    def make(self) -> Any:
        made = copy.copy(self.plain)
        for name, part in self.parts:
            object.__setattr__(made, name, part.make())  # it may be frozen
        return made


def keep(value: object) -> Kept:
    """Return what is kept of ``value``: nothing that anybody else can write to.

    Raises:
        Unkeepable: A part of it cannot be copied, or contains itself.

    >>> mine = {"x": np.arange(3), "name": "a"}
    >>> kept = keep(mine)
    >>> mine["x"][:] = 0
    >>> theirs = kept.make()
    >>> del theirs["name"]
    >>> kept.make(), theirs["x"].flags.writeable
    ({'x': array([0, 1, 2]), 'name': 'a'}, False)
    """
    keeper = _Keeper()
    try:
        kept = keeper.keep(value)
    except RecursionError:
        raise Unkeepable("it is nested too deeply") from None
    keeper.copy_arrays()
    return kept


def is_light(value: object) -> bool:
    """Tell whether `keep` takes well under a millisecond: a few parts and few bytes."""
    pending, nbytes, parts = [value], 0, 0
    while pending:
        part = pending.pop()
        parts += 1
        kind = type(part)
        if kind in _DICTS:
            pending.extend(cast("dict[Any, Any]", part).values())
        elif kind in (list, tuple):
            pending.extend(cast("list[Any]", part))
        elif kind is np.ndarray:
            nbytes += cast("np.ndarray", part).nbytes
        elif not isinstance(part, _IMMUTABLE):
            return False
        if nbytes > _LIGHT_BYTES or parts + len(pending) > _LIGHT_PARTS:
            return False
    return True


@final
class _Keeper:
    """The keeping of one value: whatever it refers to twice is kept once."""

    def __init__(self) -> None:
        self._known: dict[int, Kept | None] = {}
        self._arrays: list[tuple[_Array, np.ndarray]] = []

    def keep(self, value: Any) -> Kept:
        if isinstance(value, _IMMUTABLE):
            return _Same(value)
        known = self._known.get(id(value), self)
        if known is None:
            raise Unkeepable("it contains itself")
        if known is self:
            self._known[id(value)] = None
            known = self._known[id(value)] = self._keep(value)
        return cast("Kept", known)

    def _keep(self, value: Any) -> Kept:
        kind = type(value)
        if kind in (np.ndarray, np.memmap) and not value.dtype.hasobject:
            node = _Array(value)
            self._arrays.append((node, value))
            return node
        if kind in _DICTS:
            return self._container(value.copy(), list(value.items()))
        if kind is list:
            return self._container(value.copy(), list(enumerate(value)))
        if isinstance(value, tuple) and (kind is tuple or hasattr(kind, "_make")):
            inner = self._container(list(value), list(enumerate(value)))
            if not inner.parts:
                return _Same(value)
            return _Tuple(tuple if kind is tuple else kind._make, inner)
        if kind is types.MappingProxyType:
            return _Tuple(types.MappingProxyType, self.keep(dict(value)))
        if kind is frozenset and all(isinstance(part, _IMMUTABLE) for part in value):
            return _Same(value)
        if kind in _SETS and all(isinstance(part, _IMMUTABLE) for part in value):
            return _Copied(value.copy())
        if dataclasses.is_dataclass(value):
            return self._object(value)
        return _Device(value) if _is_jax_array(value) else _deep(value)

    def _container(self, plain: Any, items: list[tuple[Any, Any]]) -> _Container:
        parts = [(key, self.keep(value)) for key, value in items]
        parts = [(key, part) for key, part in parts if not isinstance(part, _Same)]
        for key, _ in parts:
            plain[key] = None
        return _Container(plain, parts)

    def _object(self, value: Any) -> Kept:
        names = {field.name for field in dataclasses.fields(value)} | {*_dict_of(value)}
        held = {name: getattr(value, name) for name in names if hasattr(value, name)}
        parts = [(name, self.keep(part)) for name, part in sorted(held.items())]
        parts = [(name, part) for name, part in parts if not isinstance(part, _Same)]
        try:
            plain = copy.copy(value)
            for name, _ in parts:
                object.__setattr__(plain, name, None)
        except Exception:
            return _deep(value)
        return _Object(plain, parts)

    def copy_arrays(self) -> None:
        """Copy all arrays, those that share memory together where that takes less of it."""
        shared: dict[int, list[tuple[_Array, np.ndarray]]] = {}
        for node, array in self._arrays:
            shared.setdefault(id(_base(array)), []).append((node, array))
        for group in shared.values():
            base = _base(group[0][1])
            whole = base.nbytes <= sum(array.nbytes for _, array in group)
            if whole and base.flags.forc and not base.dtype.hasobject:
                _copy_together(base, group)
            else:  # the rest of a large array must not stay for the sake of a row
                for node, array in group:
                    node.owner = _like(array, _private(array.nbytes))


def _base(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _private(nbytes: int) -> np.ndarray:
    # Aligned, so that JAX takes over what it is given. Little arrays are copied sooner.
    slack = _ALIGNMENT if nbytes >= _ALIGNED_FROM else 0
    memory = np.empty(nbytes + slack, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT if slack else 0
    return memory[start : start + nbytes]


def _like(array: np.ndarray, memory: np.ndarray) -> np.ndarray:
    owner = np.ndarray(array.shape, array.dtype, memory)
    owner[...] = array
    return _read_only(owner)


def _copy_together(base: np.ndarray, group: list[tuple[_Array, np.ndarray]]) -> None:
    memory = _private(base.nbytes)
    flat = base.ravel(order="K")
    np.ndarray(flat.shape, flat.dtype, memory)[...] = flat
    start = base.ctypes.data
    for node, array in group:
        offset = array.ctypes.data - start if array.size else 0
        owner = np.ndarray(array.shape, array.dtype, memory, offset, array.strides)
        node.owner = _read_only(owner)


def _read_only(owner: np.ndarray) -> np.ndarray:
    array: Any = owner
    while isinstance(array, np.ndarray):
        array.flags.writeable = False
        array = array.base
    return owner


def _dict_of(value: object) -> dict[str, Any]:
    return getattr(value, "__dict__", {})


def _deep(value: Any) -> _Deep:
    try:
        return _Deep(copy.deepcopy(value))
    except Exception as error:
        raise Unkeepable(f"{type(value).__qualname__} cannot be copied: {error!r}") from error


def _is_jax_array(value: object) -> bool:
    jax = sys.modules.get("jax")  # where it has not been imported there is no such array
    return jax is not None and isinstance(value, jax.Array) and hasattr(value, "is_deleted")
