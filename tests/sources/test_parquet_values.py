"""Values of Parquet columns: NumPy's where it has them, and each a row's own."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from counting_store import CountingStore
from tables import with_rows, written

from aioloader.sources.parquet_values import getter

if TYPE_CHECKING:
    from aioloader.sources import ParquetSource

COLUMNS: dict[str, tuple[Any, list[Any], Any]] = {
    "int8": (pa.int8(), [1, -2], np.int8),
    "uint64": (pa.uint64(), [2**64 - 1, 0], np.uint64),
    "half": (pa.float16(), [np.float16(1), np.float16(2)], np.float16),
    "float": (pa.float32(), [1.5, 2.0], np.float32),
    "double": (pa.float64(), [1.5, float("inf")], np.float64),
    "bool": (pa.bool_(), [True, False], np.bool_),
    "date": (pa.date32(), [datetime.date(2020, 2, 3), datetime.date(1, 1, 1)], "<M8[D]"),
    "stamp": (pa.timestamp("us"), [datetime.datetime(2020, 2, 3, 4)] * 2, "<M8[us]"),
    "span": (pa.duration("ms"), [datetime.timedelta(3), datetime.timedelta(-1)], "<m8[ms]"),
    "text": (pa.string(), ["é", ""], str),
    "large text": (pa.large_string(), ["é", ""], str),
    "text view": (pa.string_view(), ["é", "long " * 9], str),
    "binary": (pa.binary(), [b"\0\xff", b""], bytes),
    "fixed": (pa.binary(2), [b"ab", b"cd"], bytes),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), ["a", "b"], str),
    "decimal": (
        pa.decimal128(9, 2),
        [Decimal("1.25"), Decimal(0)],
        Decimal,
    ),
    "time": (pa.time64("us"), [datetime.time(1, 2), datetime.time(3)], datetime.time),
    "map": (pa.map_(pa.string(), pa.int8()), [[("a", 1)], []], list),
    "list": (pa.list_(pa.int16()), [[1, 2, 3], []], np.int16),
    "large list": (pa.large_list(pa.float32()), [[1.0], [2.0, 3.0]], np.float32),
    "vector": (pa.list_(pa.float32(), 2), [[1.0, 2.0], [3.0, 4.0]], np.float32),
    "matrix": (
        pa.list_(pa.list_(pa.int8(), 2), 3),
        [[[1, 2], [3, 4], [5, 6]], [[6, 5], [4, 3], [2, 1]]],
        np.int8,
    ),
    "vectors": (pa.list_(pa.list_(pa.int8(), 2)), [[[1, 2], [3, 4]], [[5, 6]]], np.int8),
    "texts": (pa.list_(pa.string()), [["a", "b"], []], list),
    "with nulls": (pa.list_(pa.int8()), [[1, None], [None]], list),
    "struct": (pa.struct({"a": pa.int8(), "b": pa.string()}), [{"a": 1, "b": None}] * 2, dict),
    "a.b": (pa.int32(), [1, 2], np.int32),
}


@pytest.mark.parametrize("nulls", [False, True])
def test_values_are_numpys_where_it_has_them(nulls: bool) -> None:
    """Of the column's own dtype, null or not; everything else is Python's."""
    end = [None] if nulls else []
    data = pa.table({name: pa.array([*v, *end], t) for name, (t, v, _) in COLUMNS.items()})
    store = CountingStore({"a.parquet": written(data, row_group_size=2)})

    async def main(source: ParquetSource) -> None:
        for number in range(2):
            row = await source[number]
            assert list(row) == list(COLUMNS)
            for name, (_, values, kind) in COLUMNS.items():
                value, wanted = row[name], values[number]
                if isinstance(value, np.ndarray | np.generic):
                    assert value.dtype == kind
                    assert np.array_equal(value, np.asarray(wanted, value.dtype))
                else:
                    assert type(value) is kind
                    assert value == wanted
        assert isinstance((await source[0])["struct"]["a"], np.int8)
        assert (await source[0])["matrix"].shape == (3, 2)
        if nulls:
            assert set((await source[2]).values()) == {None}

    with_rows(main, store)


def test_codes_of_numbers_and_storage_of_other_types_are_numbers() -> None:
    """As if they were stored plainly."""
    codes = pa.array([5, None, 5], pa.int64()).dictionary_encode()
    assert [getter(codes)(row) for row in range(3)] == [5, None, 5]
    assert type(getter(codes)(0)) is np.int64
    assert type(getter(pa.array([1, 0], pa.bool8()))(0)) is np.int8
    days = pa.array([datetime.date(2020, 1, 2), None], pa.date64())
    assert [getter(days)(row) for row in range(2)] == [np.datetime64("2020-01-02"), None]
    assert type(getter(days)(0)) is np.datetime64


def test_tensors_are_arrays_that_keep_nothing_else_alive() -> None:
    """Neither do lists: they can be kept, and written to."""
    tensors = np.arange(60, dtype=np.float32).reshape(10, 2, 3)
    lists = pa.array([[number] * 3 for number in range(10)], pa.list_(pa.int64()))
    data = pa.table({"t": pa.FixedShapeTensorArray.from_numpy_ndarray(tensors), "l": lists})

    async def main(source: ParquetSource) -> None:
        row = await source[7]
        assert np.array_equal(row["t"], tensors[7])
        for value in row.values():
            assert value.base is None or value.base.nbytes == value.nbytes
            value += 1
        assert (await source[7])["l"].tolist() == [7, 7, 7]

    with_rows(main, CountingStore({"a.parquet": written(data)}))
