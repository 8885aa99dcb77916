"""Additional data as bytes, and back: plain values exactly, or a refusal; never code."""

from __future__ import annotations

import pickle
import re
from typing import TYPE_CHECKING, Any, final

import ml_dtypes  # noqa: F401  (registers bfloat16, float8 and int4 with numpy, by name)
import msgspec
import numpy as np
from msgspec.msgpack import Ext

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["PickleRefused", "decode_extras", "encode_extras"]

_TUPLE, _ARRAY, _SCALAR, _INTEGER, _COMPLEX, _PAIRS, _TEXT, _PICKLE = range(1, 9)
_DEEPEST = 64
_AS_THEY_ARE = frozenset({type(None), bool, float, bytes})
_DTYPE = re.compile(r"[<>|][biufcSUmMV]\d+(\[\w+\])?|[a-z]\w*")
_encode = msgspec.msgpack.Encoder().encode


class PickleRefused(ValueError):
    """There is a pickle, which may run code, and nobody has allowed that."""


def encode_extras(
    extras: Mapping[str, Sequence[object]], rows: int, *, allow_pickle: bool = False
) -> bytes:
    """Return columns of additional data as MessagePack.

    None, bool, int, float, complex, str, bytes, tuple, list, dict, and NumPy arrays and scalars
    come back as what they were; equal objects come back as several. Anything else is pickled
    with ``allow_pickle``.

    Raises:
        TypeError: A value is something else; the message names the key, the row and the type.
        ValueError: A column does not have a value for each row.

    >>> decode_extras(encode_extras({"a": [(1, None), b"x"]}, 2), 2)
    {'a': [(1, None), b'x']}
    """
    columns = {}
    for key, column in extras.items():
        if type(key) is not str:
            raise TypeError(f"keys of additional data are strings, got {key!r}")
        if len(column) != rows:
            raise ValueError(f"additional[{key!r}] has {len(column)} values for {rows} rows")
        taking_apart = _TakingApart(key, allow_pickle)
        columns[key] = [taking_apart.row(row, value) for row, value in enumerate(column)]
    return _encode(_mapping(columns))


def decode_extras(
    raw: bytes | memoryview, rows: int, *, allow_pickle: bool = False
) -> dict[str, list[Any]]:
    """Return what `encode_extras` was given, with each column as a list.

    Raises:
        PickleRefused: There is a pickle, and ``allow_pickle`` is false.
        ValueError: It is not what `encode_extras` writes for so many rows.
    """
    try:
        columns = _Decoder(allow_pickle).decode(raw)
    except PickleRefused:
        raise
    except Exception as error:
        raise ValueError(f"the additional data cannot be read ({error})") from error
    if type(columns) is not dict or not all(
        type(key) is str and type(column) is list and len(column) == rows
        for key, column in columns.items()
    ):
        raise ValueError(f"the additional data are not columns of {rows} values each")
    return columns


@final
class _TakingApart:
    """The values of one column, as what MessagePack has, and extensions of it."""

    def __init__(self, key: str, allow_pickle: bool) -> None:
        self._key = key
        self._allow_pickle = allow_pickle
        self._row = 0

    def row(self, row: int, value: object) -> object:
        self._row = row
        return self._value(value, 0)

    def _value(self, value: Any, depth: int) -> object:
        kind = type(value)
        if kind in _AS_THEY_ARE:
            return value
        if kind is int:
            return value if -(1 << 63) <= value < 1 << 64 else Ext(_INTEGER, _whole(value))
        if kind is str:
            return _text(value)
        if depth > _DEEPEST:
            raise TypeError(f"{self._where()} is nested more than {_DEEPEST} levels deep")
        if kind is list:
            return [self._value(each, depth + 1) for each in value]
        if kind is tuple:
            return Ext(_TUPLE, _encode([self._value(each, depth + 1) for each in value]))
        if kind is dict:
            pairs = [
                (self._value(key, depth + 1), self._value(each, depth + 1))
                for key, each in value.items()
            ]
            return _mapping(dict(pairs)) if _are_names(value) else Ext(_PAIRS, _encode(pairs))
        if kind is complex:
            return Ext(_COMPLEX, _encode((value.real, value.imag)))
        return self._other(value, kind)

    def _other(self, value: Any, kind: type) -> object:
        if kind is np.ndarray or issubclass(kind, np.generic):
            token = _token(value.dtype)
            if token is not None and issubclass(kind, np.generic):
                return Ext(_SCALAR, _encode((token, value.tobytes())))
            if token is not None:
                return Ext(_ARRAY, _encode((token, value.shape, value.tobytes())))
        if self._allow_pickle:
            return Ext(_PICKLE, pickle.dumps(value, protocol=5))
        of = f" of dtype {value.dtype}" if isinstance(value, np.ndarray) else ""
        raise TypeError(
            f"{self._where()} is or contains {_a(kind)}{of}, which the cache on disk cannot keep: "
            "have `load` return plain values (None, bool, int, float, complex, str, bytes, tuple, "
            "list, dict, NumPy arrays and scalars), or allow pickle with allow_pickle=True"
        )

    def _where(self) -> str:
        return f"additional[{self._key!r}][{self._row}]"


@final
class _Decoder:
    """Puts together what `_TakingApart` took apart."""

    def __init__(self, allow_pickle: bool) -> None:
        self._allow_pickle = allow_pickle
        self.decode = msgspec.msgpack.Decoder(ext_hook=self._extension).decode

    def _extension(self, code: int, raw: memoryview) -> object:
        if code == _PICKLE:
            if not self._allow_pickle:
                raise PickleRefused(
                    "its additional data hold a pickle, which may run code when it is read; if "
                    "you trust whoever wrote it, pass allow_pickle=True"
                )
            return pickle.loads(raw)
        if code == _INTEGER:
            return int.from_bytes(raw, "little", signed=True)
        if code == _TEXT:
            return bytes(raw).decode("utf-8", "surrogatepass")
        content = self.decode(raw)
        if type(content) is not list:
            raise ValueError(f"an extension with the code {code} holds {_a(type(content))}")
        if code == _TUPLE:
            return tuple(content)
        if code == _PAIRS:
            return dict(content)
        if code == _COMPLEX:
            return complex(*content)
        if code == _SCALAR:
            return _array(content[0], (), content[1])[()]
        if code == _ARRAY:
            return _array(*content)
        raise ValueError(f"an extension has the unknown code {code}")


def _array(token: object, shape: Any, raw: object) -> np.ndarray:
    if type(token) is not str or type(raw) is not bytes or not _DTYPE.fullmatch(token):
        raise ValueError(f"{token!r} is not the dtype of an array")
    dtype = np.dtype(token)
    if _token(dtype) != token:
        raise ValueError(f"{token!r} is not a dtype that is kept")
    count = 1
    for size in shape:
        if type(size) is not int or size < 0:
            raise ValueError(f"{shape!r} is not the shape of an array")
        count *= size
    if count * dtype.itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes are no array of {tuple(shape)} and {dtype}")
    return np.ndarray(tuple(shape), dtype, bytearray(raw))


def _token(dtype: np.dtype[Any]) -> str | None:
    """Return text from which NumPy makes exactly this dtype, without fields and objects."""
    if dtype.hasobject or dtype.fields is not None or dtype.kind not in "biufcSUmMV":
        return None
    for token in (dtype.str, dtype.name):
        try:
            if np.dtype(token) == dtype:
                return token
        except TypeError:
            continue
    return None


def _text(value: str) -> object:
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair, as in names of files that are not UTF-8
        return Ext(_TEXT, value.encode("utf-8", "surrogatepass"))
    return value


def _are_names(value: dict[Any, Any]) -> bool:
    return all(type(key) is str and type(_text(key)) is str for key in value)


def _mapping(value: dict[Any, Any]) -> object:
    if _are_names(value):
        return value
    return Ext(_PAIRS, _encode([(_text(key), each) for key, each in value.items()]))


def _whole(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)


def _a(kind: type) -> str:
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
