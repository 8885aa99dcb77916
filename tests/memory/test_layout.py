"""Layouts: named arrays of a batch in the bytes of one slot."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioloader._memory.declaring import ALIGNMENT, make_layouts
from aioloader._memory.layout import RowViews, layout_bytes, take_rows, view
from aioloader.errors import LayoutError

if TYPE_CHECKING:
    from collections.abc import Sequence

DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
    *("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"),
]

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
entries = st.tuples(shapes, st.sampled_from(DTYPES), st.sampled_from(DTYPES))
specs = st.dictionaries(st.text(min_size=1, max_size=3), entries, min_size=1, max_size=6)


@given(specs, st.integers(0, 9))
def test_arrays_lie_in_order_each_on_an_aligned_offset(spec: dict[str, Any], rows: int) -> None:
    """No two arrays share a byte, and each begins where JAX can take it over."""
    layouts = make_layouts(spec, rows, "loader_arrays")
    assert list(layouts) == list(spec)
    end = 0
    for name, (shape, numpy_dtype, jax_dtype) in spec.items():
        layout = layouts[name]
        assert layout.shape == (rows, *shape)
        assert layout.count == math.prod(layout.shape)
        assert layout.numpy_dtype == np.dtype(numpy_dtype)
        assert layout.jax_dtype == np.dtype(jax_dtype)
        assert layout.offset % ALIGNMENT == 0
        assert layout.offset >= end
        end = layout.offset + layout.count * layout.numpy_dtype.itemsize
    assert layout_bytes(layouts) == end


@given(specs, st.integers(1, 9), st.integers(0, 3))
def test_views_are_the_bytes_of_the_buffer(spec: dict[str, Any], rows: int, pages: int) -> None:
    """Every array can be written to its last element, and they do not overwrite each other."""
    layouts = make_layouts(spec, rows, "loader_arrays")
    base = pages * 4096
    buffer = bytearray(base + layout_bytes(layouts))
    arrays = view(buffer, layouts, base)
    for number, array in enumerate(arrays.values()):
        array.view("uint8" if array.itemsize == 1 else array.dtype).reshape(-1)[...] = number % 2
    for number, (name, array) in enumerate(arrays.items()):
        assert array.shape == layouts[name].shape
        assert array.dtype == layouts[name].numpy_dtype
        plain = array.view("uint8" if array.itemsize == 1 else array.dtype)
        assert (plain == number % 2).all()
    assert not any(buffer[:base])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_of_jax_round_trips(dtype: str) -> None:
    layouts = make_layouts({"x": ((3,), dtype, dtype)}, 2, "loader_arrays")
    buffer = bytearray(layout_bytes(layouts))
    view(buffer, layouts)["x"][...] = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    again = view(buffer, layouts)["x"]
    assert again.dtype == np.dtype(dtype)
    assert again.astype("float32" if "complex" not in dtype else "complex64").real.tolist() == [
        [0, 1, 1],
        [1, 0, 1],
    ]


@pytest.mark.parametrize(
    ("given_dtype", "expected"),
    [
        (bool, "bool"),
        (np.float32, "float32"),
        (np.dtype("int16"), "int16"),
        (ml_dtypes.bfloat16, "bfloat16"),
    ],
)
def test_dtypes_may_be_types_and_dtypes_as_well_as_names(given_dtype: Any, expected: str) -> None:
    layout = make_layouts({"x": ((), given_dtype, given_dtype)}, 4, "loader_arrays")["x"]
    assert (layout.numpy_dtype, layout.jax_dtype) == (np.dtype(expected), np.dtype(expected))


def test_scalars_and_empty_dimensions_are_arrays_too() -> None:
    spec = {"scalar": ((), "float32", "float32"), "none": ((3, 0), "int8", "int8")}
    layouts = make_layouts({**spec, "last": ((2,), "int64", "int32")}, 5, "loader_arrays")
    arrays = view(bytearray(layout_bytes(layouts)), layouts)
    assert {name: array.shape for name, array in arrays.items()} == {
        "scalar": (5,),
        "none": (5, 3, 0),
        "last": (5, 2),
    }


def test_a_batch_of_empty_arrays_takes_no_bytes() -> None:
    layouts = make_layouts({"x": ((0,), "int64", "int32")}, 5, "loader_arrays")
    assert layout_bytes(layouts) == 0
    assert view(bytearray(1), layouts)["x"].shape == (5, 0)


BAD_SPECS: list[tuple[Any, str]] = [
    ([("x", ((), "int8", "int8"))], "must map names to arrays"),
    ({}, "is empty"),
    ({3: ((), "int8", "int8")}, "names are strings, got 3"),
    ({"x": ((), "int8")}, r"\['x'\] must be \(shape, numpy_dtype, jax_dtype\)"),
    ({"x": "abc"}, r"\['x'\] must be \(shape, numpy_dtype, jax_dtype\), got 'abc'"),
    ({"x": (5, "int8", "int8")}, r"\['x'\]: the shape must be a tuple of sizes, got 5"),
    ({"x": ((2.5,), "int8", "int8")}, r"\['x'\]: the shape must be a tuple of sizes"),
    ({"x": ("12", "int8", "int8")}, r"\['x'\]: the shape must be a tuple of sizes"),
    ({"x": ((2, -1), "int8", "int8")}, r"\['x'\]: sizes must not be negative, got \(2, -1\)"),
    ({"x": ((), "int7", "int8")}, r"\['x'\]: 'int7' is not a dtype"),
    ({"x": ((), "int8", "int7")}, r"\['x'\]: 'int7' is not a dtype"),
    ({"x": ((), None, "int8")}, r"\['x'\]: dtype None"),
    ({"x": ((), "U5", "int8")}, r"\['x'\]: dtype 'U5'.*additional"),
    ({"x": ((), "int8", object)}, r"\['x'\]: dtype .*additional"),
    ({"x": ((), "datetime64[s]", "int8")}, r"\['x'\]: dtype"),
    ({"x": ((), [("a", "int8")], "int8")}, r"\['x'\]: dtype"),
    ({"x": ((), "V4", "int8")}, r"\['x'\]: dtype"),
    ({"x": ((), {"names": ["a"]}, "int8")}, r"\['x'\]"),
    ({"x": ((), "int8", ">i4")}, r"\['x'\]"),
    ({"x": ((), "int8", "longdouble")}, r"\['x'\]"),
    ({"x": ((), "int8", "clongdouble")}, r"\['x'\]"),
]


@pytest.mark.parametrize(("spec", "message"), BAD_SPECS, ids=[repr(spec) for spec, _ in BAD_SPECS])
def test_a_bad_spec_is_an_error_that_names_parameter_and_array(spec: Any, message: str) -> None:
    with pytest.raises(LayoutError, match=f"^loader_arrays.*{message}"):
        make_layouts(spec, 2, "loader_arrays")


def test_the_message_names_the_array_that_is_bad_and_not_another() -> None:
    spec = {"good": ((), "int8", "int8"), "bad": ((), "int8", "nothing")}
    with pytest.raises(LayoutError, match=r"cache_arrays\['bad'\]"):
        make_layouts(spec, 2, "cache_arrays")


def test_layouts_cannot_be_changed() -> None:
    layouts: Any = make_layouts({"x": ((), "int8", "int8")}, 2, "loader_arrays")
    with pytest.raises(TypeError):
        layouts["x"] = None


@given(specs, st.integers(1, 9), st.data())
def test_taking_rows_changes_shapes_and_moves_nothing(
    spec: dict[str, Any], rows: int, data: st.DataObject
) -> None:
    """A short batch is the first rows of a whole one: workers need not know the difference."""
    fewer = data.draw(st.integers(0, rows))
    whole = make_layouts(spec, rows, "loader_arrays")
    short = take_rows(whole, fewer)
    for name, layout in short.items():
        assert layout.shape == (fewer, *whole[name].shape[1:])
        assert layout.count == math.prod(layout.shape)
        kept = ("numpy_dtype", "jax_dtype", "offset")
        assert all(getattr(layout, k) == getattr(whole[name], k) for k in kept)
    buffer = bytearray(layout_bytes(whole))
    few, all_of_them = view(buffer, short), view(buffer, whole)
    for name in spec:
        few[name][...] = 1
        assert (all_of_them[name][:fewer] == few[name]).all()
        assert not all_of_them[name][fewer:].astype(bool).any()


def batch(rows: int = 4) -> dict[str, np.ndarray]:
    return {"x": np.zeros((rows, 3), "int32"), "y": np.zeros(rows, "float32")}


def test_what_is_written_to_a_row_is_in_the_batch() -> None:
    """Also in a row of a scalar field, where plain indexing would give a copy."""
    arrays = batch()
    row = RowViews(arrays).row(2)
    assert (row["x"].shape, row["y"].shape) == ((3,), ())
    row["x"][...] = 7
    row["y"][...] = 8
    assert arrays["x"].tolist() == [[0] * 3, [0] * 3, [7] * 3, [0] * 3]
    assert arrays["y"].tolist() == [0, 0, 8, 0]


def test_a_row_is_a_read_only_mapping() -> None:
    """``arrays["x"] = value`` would be written nowhere; it raises instead."""
    views = RowViews(batch())
    for row in (views.row(1), views.span(0, 2)):
        unprotected: Any = row
        with pytest.raises(TypeError):
            unprotected["x"] = 1


def test_views_of_rows_are_made_once() -> None:
    views = RowViews(batch())
    first = list(views.take(range(4)))
    assert views.kept == 4
    assert all(one is two for one, two in zip(first, views.take([0, 1, 2, 3]), strict=True))
    assert views.take(range(2, 4))[0] is first[2]


@pytest.mark.parametrize("rows", [range(1, 4), range(3, 0, -2), [2, 0], []], ids=str)
@pytest.mark.parametrize("spare", [0, 4])
def test_several_rows_are_the_rows_one_by_one(rows: Sequence[int], spare: int) -> None:
    """Whether they are kept or not, of scalar fields and of others."""
    arrays = batch()
    for number, row in enumerate(RowViews(arrays, spare).take(rows), 1):
        assert (row["x"].shape, row["y"].shape) == ((3,), ())
        row["x"][...] = row["y"][...] = number
    expected = [0] * 4
    for number, index in enumerate(rows, 1):
        expected[index] = number
    assert arrays["y"].tolist() == expected
    assert arrays["x"].tolist() == [[number] * 3 for number in expected]


def test_rows_of_very_large_batches_work_and_are_not_kept() -> None:
    arrays = {"y": np.zeros(100_000, "int32")}
    views = RowViews(arrays)
    (row,) = views.take([99_999])
    row["y"][...] = 5
    assert arrays["y"][99_999] == 5
    assert views.kept == 0
    assert views.take([99_999])[0] is not row


def test_a_span_is_the_batch_between_two_rows() -> None:
    arrays = batch()
    span = RowViews(arrays).span(1, 3)
    assert (span["x"].shape, span["y"].shape) == ((2, 3), (2,))
    span["y"][...] = [1, 2]
    assert arrays["y"].tolist() == [0, 1, 2, 0]
