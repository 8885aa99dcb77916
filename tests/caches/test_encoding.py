"""Additional data: plain values come back as they were, the rest is refused by name."""

from __future__ import annotations

import datetime
import enum
import os
import pickle
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from aioloader._caches.encoding import PickleRefused, decode_extras, encode_extras

Point = namedtuple("Point", "x y")


class Colour(enum.IntEnum):
    RED = 1


def there_and_back(value: Any) -> Any:
    return decode_extras(encode_extras({"key": [value]}, 1), 1)["key"][0]


def same(one: Any, other: Any) -> bool:
    """Equal, of the same type, and so all the way down; NaN is NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | np.generic):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True)
        return len(one) == len(other) and all(same(list(a), list(b)) for a, b in pairs)
    return repr(one) == repr(other)


PLAIN = [
    None,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    2**64 - 1,
    2**64,
    -(2**63) - 1,
    10**400,
    0.0,
    -0.0,
    float("inf"),
    float("nan"),
    5e-324,
    1 + 2j,
    "",
    "snowman \N{SNOWMAN}",
    "name \udcff of a file",
    b"",
    b"\0\xff",
    (),
    (1, (2, [3, (4,)])),
    [],
    [None, [True]],
    {},
    {"a": {"b": (1,)}},
    {1: 2, None: 3, (1, 2): b"x", "\udcff": 0, False: 4},
    {"\udcff": 1},
    np.float32(1.5),
    np.bool_(True),
    np.int64(-3),
    np.str_("text"),
    np.bytes_(b"bytes"),
    np.datetime64("2026-11-21T12:00", "ns"),
    np.timedelta64(3, "D"),
    np.complex64(1j),
    ml_dtypes.bfloat16(1.5),
    np.zeros((0, 3)),
    np.array(5),
    np.arange(6, dtype=">i2").reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(10)[::3],
    np.array(["a", "longer"]),
    np.array([b"a", b"longer"]),
    np.array([1, 2, 3], ml_dtypes.bfloat16),
    np.array([1, 2, 3], ml_dtypes.float8_e4m3fn),
    np.array([1, 2, 3], ml_dtypes.float8_e5m2),
    np.array([1, 2, 3], ml_dtypes.int4),
    np.array(["2026-01-01", "NaT"], "datetime64[D]"),
    np.longdouble(1),
    [np.float64(1), {"deep": (np.ones(2),)}],
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:30])
def test_plain_values_come_back_exactly(value: Any) -> None:
    """With their types, and with all that is in them."""
    back = there_and_back(value)
    assert same(back, np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value) or (
        isinstance(value, np.ndarray) and value.shape == () and same(back, value)
    )


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.binary()
)
names = st.text(st.characters(exclude_categories=()))
arrays = nps.arrays(nps.scalar_dtypes(), nps.array_shapes(min_dims=0, min_side=0))
keys = st.none() | st.booleans() | st.integers() | names | st.binary() | st.tuples(names)
values = st.recursive(
    scalars | names | arrays,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
    max_leaves=8,
)


@given(st.dictionaries(names, st.lists(values, min_size=2, max_size=2), max_size=3))
@settings(max_examples=150, deadline=None)
def test_columns_come_back_whatever_is_in_them(columns: dict[str, list[Any]]) -> None:
    """Any nesting of any plain values."""
    assert same(decode_extras(encode_extras(columns, 2), 2), columns)


def test_what_comes_back_is_free_to_be_changed() -> None:
    """Arrays are writable, as they are when `load` has just returned them."""
    array = there_and_back(np.zeros(3))
    array[0] = 1
    assert array.sum() == 1


REFUSED = [
    (datetime.datetime(2026, 1, 1), "datetime.datetime"),
    ({1, 2}, "set"),
    (Point(1, 2), "Point"),
    (Colour.RED, "Colour"),
    (Path("x"), "Path"),
    (OrderedDict(a=1), "OrderedDict"),
    (bytearray(b"x"), "bytearray"),
    (np.array([1, "x"], object), "ndarray of dtype object"),
    (np.zeros(2, [("a", "i4")]), "ndarray of dtype"),
    (np.ma.masked_array([1]), "MaskedArray"),
    (object(), "object"),
    (len, "builtin_function"),
]


@pytest.mark.parametrize(("value", "said"), REFUSED, ids=[said for _, said in REFUSED])
@pytest.mark.parametrize("deep", [False, True])
def test_anything_else_is_refused_by_key_row_and_type(value: Any, said: str, deep: bool) -> None:
    """Rather than come back as something else, or as a pickle that nobody allowed."""
    column = [None, [("x", {"y": value})] if deep else value]
    with pytest.raises(TypeError, match=rf"additional\['key'\]\[1\] .*{said}.*allow_pickle=True"):
        encode_extras({"key": column}, 2)


@pytest.mark.parametrize(("value", "said"), REFUSED[:7], ids=[said for _, said in REFUSED[:7]])
def test_with_pickle_it_comes_back(value: Any, said: str) -> None:
    """If that is allowed for writing, and for reading."""
    raw = encode_extras({"key": [[value], 1]}, 2, allow_pickle=True)
    assert decode_extras(raw, 2, allow_pickle=True) == {"key": [[value], 1]}
    with pytest.raises(PickleRefused, match="allow_pickle=True"):
        decode_extras(raw, 2)


def test_plain_values_are_not_pickled_even_where_that_is_allowed() -> None:
    """So a cache of plain values can be read by those who do not allow it."""
    raw = encode_extras({"key": [(1, np.ones(2))]}, 1, allow_pickle=True)
    assert same(decode_extras(raw, 1), {"key": [(1, np.ones(2))]})


def test_nesting_without_end_is_refused() -> None:
    """A list that holds itself ends in an error that says where."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(TypeError, match=r"additional\['key'\]\[0\] is nested"):
        encode_extras({"key": [endless]}, 1)


def test_columns_have_a_value_for_each_row() -> None:
    """And their keys are strings."""
    with pytest.raises(ValueError, match=r"additional\['key'\] has 2 values for 3 rows"):
        encode_extras({"key": [1, 2]}, 3)
    with pytest.raises(TypeError, match="keys of additional data are strings, got 1"):
        encode_extras({1: [1]}, 1)  # type: ignore[dict-item]


class Bomb:
    """Runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def extension(code: int, content: Any) -> bytes:
    raw = content if isinstance(content, bytes) else msgspec.msgpack.encode(content)
    return msgspec.msgpack.encode({"key": [msgspec.msgpack.Ext(code, raw)]})


def test_a_pickle_in_any_place_is_not_run(tmp_path: Path) -> None:
    """Neither as a value, nor within one, nor instead of everything."""
    bomb = pickle.dumps(Bomb(tmp_path / "struck"))
    inside = msgspec.msgpack.encode([msgspec.msgpack.Ext(8, bomb)])
    for raw in (extension(8, bomb), extension(1, inside), extension(6, inside), bomb):
        with pytest.raises(ValueError, match=r"allow_pickle=True|cannot be read"):
            decode_extras(raw, 1)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="columns"):
        decode_extras(extension(8, bomb), 3, allow_pickle=True)
    assert (tmp_path / "struck").exists(), "the bomb is one"


NONSENSE = [
    b"",
    b"\xc1",
    b"\x90",
    b"\x81\xa3key\x91",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\x81\xa3key\xdd\xff\xff\xff\xff",
    b"\x91" * 100_000,
    extension(2, ["O", [1], b"12345678"]),
    extension(2, ["object", [1], b"12345678"]),
    extension(2, ["|V8", [1 << 40], b""]),
    extension(2, ["<f8", [1 << 62, 1 << 62], b""]),
    extension(2, ["<f8", [-1, -1], b"12345678"]),
    extension(2, ["<f8", [1] * 100, b"12345678"]),
    extension(2, ["<f8", [1], b"1234"]),
    extension(2, ["<f8", [1], b"12345678 and more"]),
    extension(2, ["<f8", None, b""]),
    extension(2, ["i4,O", [1], b"123456789012"]),
    extension(2, [["<f8"], [1], b"12345678"]),
    extension(3, ["<f8"]),
    extension(3, {"a": 1}),
    extension(5, ["a", "b"]),
    extension(6, [1, 2]),
    extension(6, [[[1], 2]]),
    extension(7, b"\xff"),
    extension(99, []),
    msgspec.msgpack.encode({"key": [1, 2]}),
    msgspec.msgpack.encode({"key": 1}),
    msgspec.msgpack.encode({1: [1]}),
]


@pytest.mark.parametrize("raw", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_an_error_and_nothing_else(raw: bytes) -> None:
    """No code, no memory, and no other exception."""
    with pytest.raises(ValueError, match="additional data"):
        decode_extras(raw, 1)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_an_error_or_plain_values(raw: bytes) -> None:
    """Whatever somebody writes there."""
    try:
        columns = decode_extras(raw, 1)
    except ValueError:
        return
    assert all(len(column) == 1 for column in columns.values())
