"""A fingerprint of data and their order: a sample of items, encoded the same in every process."""

from __future__ import annotations

import enum
import struct
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any, final

import numpy as np
import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioloader.protocols import Indexable

__all__ = ["fingerprint"]

_SAMPLE = 128
_LONGEST_VERSION = 1000


def fingerprint(data: Indexable[Any], version: str | int | None = None) -> str:
    """Return text that changes when the data or their order do, as far as can be seen.

    Up to 128 items are looked at, spread over the data and always the same ones for a length,
    the first and the last among them: the cost does not grow with the data. With a ``version``,
    which the user changes whenever the data change, none is.

    Raises:
        TypeError: An item cannot be encoded so that it is the same in every process, or
            ``version`` is neither text nor a whole number.

    >>> fingerprint(range(1000)) == fingerprint(list(range(1000)))
    True
    >>> fingerprint("abc") == fingerprint("acb"), fingerprint("abc", "v1")
    (False, "version 'v1'")
    """
    if version is not None:
        return f"version {_checked(version)!r}"
    indices = _sample(len(data))
    digest = xxhash.xxh3_128()
    for index in indices:
        try:
            _Item(digest.update).feed(data[index])
        except (TypeError, RecursionError) as error:
            raise TypeError(
                f"data[{index}], of type {type(data[index]).__name__}, cannot be recognised again "
                f"in another process ({error}): pass a data_version, which you change whenever "
                "the data change"
            ) from None
    return f"sample of {len(indices)} items {digest.hexdigest()}"


def _checked(version: object) -> str | int:
    if not isinstance(version, str | int) or isinstance(version, bool):
        raise TypeError(f"data_version must be a string or a whole number, got {version!r}")
    if len(str(version)) > _LONGEST_VERSION:
        raise ValueError(f"data_version may have {_LONGEST_VERSION} characters, not more")
    return version


def _sample(length: int) -> list[int]:
    if length <= _SAMPLE:
        return list(range(length))
    # One of each stretch, and not every nth: data may repeat themselves every n items.
    chosen = [0, length - 1]
    for k in range(_SAMPLE - 2):
        start, stop = k * length // (_SAMPLE - 2), (k + 1) * length // (_SAMPLE - 2)
        chosen.append(
            start + xxhash.xxh3_64_intdigest(struct.pack("<QQ", k, length)) % (stop - start)
        )
    return sorted(set(chosen))


@final
class _Item:
    """One item, handed to a digest piece by piece, each with its kind and its length."""

    def __init__(self, update: Callable[[bytes], object]) -> None:
        self._update = update
        self._above: list[int] = []

    def feed(self, value: Any) -> None:
        if id(value) in self._above:  # a circle
            return self._put(b"@", str(self._above.index(id(value))).encode())
        self._above.append(id(value))
        self._feed(value)
        self._above.pop()

    def _put(self, kind: bytes, raw: Any = b"") -> None:
        self._update(kind + struct.pack("<Q", len(raw)))
        self._update(raw)

    def _all(self, kind: bytes, values: Any) -> None:
        values = list(values)
        self._update(kind + struct.pack("<Q", len(values)))
        for value in values:
            self.feed(value)

    def _feed(self, value: Any) -> None:
        kind = type(value)
        if value is None or kind is bool or kind is int:
            self._put(b"n", repr(value).encode())
        elif kind is float:
            self._put(b"f", struct.pack("<d", value))
        elif kind is str:
            self._put(b"s", value.encode("utf-8", "surrogatepass"))
        elif kind is bytes or kind is bytearray:
            self._put(b"b", value)
        elif kind is list or kind is tuple:
            self._all(b"l" if kind is list else b"t", value)
        elif kind is dict:
            self._all(b"d", (part for pair in value.items() for part in pair))
        elif kind is set or kind is frozenset:
            self._all(b"u", sorted(_alone(each) for each in value))
        elif isinstance(value, enum.Enum):
            self._all(b"e", (kind, value.name))
        elif isinstance(value, type | FunctionType | BuiltinFunctionType):
            self._put(b"c", f"{value.__module__}.{value.__qualname__}".encode())
        elif kind is np.ndarray or isinstance(value, np.generic):
            self._array(value)
        else:
            self._object(value)

    def _array(self, value: Any) -> None:
        if value.dtype.hasobject:
            return self._all(b"o", (value.shape, np.asarray(value).ravel().tolist()))
        self._all(b"a", (str(value.dtype), value.shape))
        return self._put(b"b", np.ascontiguousarray(value).tobytes())

    def _object(self, value: Any) -> None:
        """Take anything else apart as pickle would."""
        try:
            parts = value.__reduce_ex__(4)
        except Exception as error:
            raise TypeError(f"{type(value).__name__} does not come apart: {error}") from None
        if isinstance(parts, str):
            self._all(b"r", (type(value), parts))
        else:
            made_by, arguments, state, items, pairs = (*parts, None, None, None)[:5]
            self._all(b"r", (made_by, arguments, state, list(items or ()), list(pairs or ())))


def _alone(value: Any) -> bytes:
    digest = xxhash.xxh3_128()
    _Item(digest.update).feed(value)
    return digest.digest()
