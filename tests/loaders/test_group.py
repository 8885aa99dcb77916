"""Groups: a sequence of data with a batch size, layouts and a policy of order, checked at once."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from loading import each
from support import simple_load

from aioloader import DataCache, DataGroup, LayoutError, Loader

if TYPE_CHECKING:
    from pathlib import Path

X = {"x": ((4,), "int32", "int32")}


class Squares:
    """A sequence that computes its items, and takes nothing but the indices it has."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        if type(index) is not int or not 0 <= index < 10:
            raise IndexError(index)
        return index * index


class Trusting:
    """A sequence that does not look at the index: one past the end gives an item like any."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        return index * index


class Registered(Sequence[int]):
    """A sequence of the standard kind."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: Any) -> Any:
        return [k * k for k in range(10)][index]


def _generator() -> Iterator[int]:
    yield from (k * k for k in range(10))


SQUARES = [k * k for k in range(10)]
KINDS: dict[str, tuple[Callable[[], Any], list[Any]]] = {
    "list": (lambda: list(SQUARES), SQUARES),
    "list with repeats": (lambda: [1, 2, 1, 3, 1, 2], [1, 2, 1, 3, 1, 2]),
    "tuple": (lambda: tuple(SQUARES), SQUARES),
    "range": (lambda: range(5, 50, 4), list(range(5, 50, 4))),
    "range that counts down": (lambda: range(20, 0, -2), list(range(20, 0, -2))),
    "numpy": (lambda: np.array(SQUARES), SQUARES),
    "str": (lambda: "abcabcxyz", list("abcabcxyz")),
    "bytes": (lambda: b"abcabcxyz", list(b"abcabcxyz")),
    "iterator": (lambda: iter(SQUARES), SQUARES),
    "generator": (_generator, SQUARES),
    "keys of a dict": (lambda: dict.fromkeys(SQUARES).keys(), SQUARES),
    "registered sequence": (Registered, SQUARES),
    "group": (lambda: DataGroup(2, SQUARES, loader_arrays=X), SQUARES),
}
OWN = {"computed": Squares, "computed, without a check": Trusting}

every_kind = pytest.mark.parametrize("kind", list(KINDS))
own_kinds = pytest.mark.parametrize("kind", list(OWN))


def _group(data: Any, batch_size: int = 2, **options: Any) -> DataGroup[Any]:
    return DataGroup(batch_size, data, **{"loader_arrays": X, **options})


def _of(kind: str) -> tuple[DataGroup[Any], list[Any]]:
    make, expected = KINDS[kind]
    return _group(make()), expected


@every_kind
def test_a_group_is_the_sequence_of_its_data(kind: str) -> None:
    """Length, items by index from both ends, iteration in both directions, membership."""
    group, expected = _of(kind)
    assert isinstance(group, Sequence)
    assert len(group) == len(expected)
    assert list(group) == expected
    assert list(group) == expected  # also a second time
    assert list(reversed(group)) == expected[::-1]
    assert [group[i] for i in range(-len(expected), len(expected))] == expected + expected
    assert expected[3] in group
    assert -7 not in group
    for index in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError):
            group[index]


@every_kind
def test_slices_are_those_of_a_list(kind: str) -> None:
    """With negative ends and steps, and past the end."""
    group, expected = _of(kind)
    for cut in (slice(2, 5), slice(None), slice(-3, None), slice(None, None, -2), slice(7, 99)):
        assert list(group[cut]) == expected[cut]


@own_kinds
def test_a_sequence_needs_no_more_than_a_length_and_items(kind: str) -> None:
    """Its own items, in order, by index and within the range of its length."""
    group = _group(OWN[kind]())
    assert len(group) == 10
    assert [group[i] for i in range(10)] == SQUARES
    assert list(reversed(group)) == SQUARES[::-1]


@own_kinds
def test_a_group_counts_from_the_end_and_cuts_also_where_its_data_do_not(kind: str) -> None:
    """Negative indices, slices and the error past the end are the group's own."""
    group = _group(OWN[kind]())
    assert [group[i] for i in range(-10, 0)] == SQUARES
    assert list(group[2:-1:3]) == SQUARES[2:-1:3]
    for index in (10, -11):
        with pytest.raises(IndexError):
            group[index]


@own_kinds
def test_iteration_ends_with_the_length(kind: str) -> None:
    """Also where an item past the end would be an item like any."""
    walk = iter(_group(OWN[kind]()))
    assert [next(walk, None) for _ in range(12)] == [*SQUARES, None, None]


def _occurrence(values: list[Any], value: Any, *between: int) -> int | None:
    try:
        return values.index(value, *between)
    except ValueError:
        return None


FIND = [(), (0,), (2,), (3, 6), (-4,), (-6, -2), (5, 3), (0, 99)]


@every_kind
def test_index_looks_between_start_and_stop(kind: str) -> None:
    """As `list.index` does; what is not there is a ValueError."""
    group, expected = _of(kind)
    for value in {*expected[::3], expected[-1]}:
        for between in FIND:
            try:
                found: int | None = group.index(value, *between)
            except ValueError:
                found = None
            assert found == _occurrence(expected, value, *between), (value, between)
    with pytest.raises(ValueError):  # noqa: PT011  (the message is the sequence's own)
        group.index(-7)


@every_kind
def test_count_tells_how_often_a_value_occurs(kind: str) -> None:
    """Zero where it does not."""
    group, expected = _of(kind)
    assert [group.count(value) for value in expected] == [expected.count(v) for v in expected]
    assert group.count(-7 if kind != "bytes" else 1) == 0


@pytest.mark.parametrize("data", [SQUARES, range(10), "0123456789", Registered()])
def test_index_takes_start_and_stop_as_every_sequence_does(data: Any) -> None:
    """By name, and a stop of None is the end."""
    group: Any = _group(data)
    assert group.index(group[5], start=2) == 5
    assert group.index(group[5], 0, None) == 5
    assert group.index(value=group[5], start=2, stop=8) == 5


def test_a_part_of_a_string_is_no_item_of_it() -> None:
    """What is no item is not found, as membership says."""
    group = _group("abcabc")
    assert "bc" not in group
    assert group.count("bc") == 0
    with pytest.raises(ValueError):  # noqa: PT011
        group.index("bc")


def test_a_sequence_is_used_as_it_is_and_what_has_no_length_is_kept() -> None:
    """No copy of a sequence; an iterator is read to its end, once, at construction."""
    data = Squares()
    assert _group(data).data is data
    source = iter(SQUARES)
    group = _group(source)
    assert next(source, "end") == "end"
    assert list(group.data) == SQUARES
    assert sorted(_group({3, 1, 2})) == [1, 2, 3]


class _Decoding(list[int]):
    """A list that makes its items when they are asked for."""

    def __getitem__(self, index: Any) -> Any:
        return f"item {super().__getitem__(index)}"


@pytest.mark.parametrize("shuffle", [False, True])
async def test_what_is_loaded_is_what_the_data_answer(shuffle: bool) -> None:
    """Also where their class extends a built-in one; in every order the same."""

    def load(item: Any, arrays: Any, seed: int | None) -> dict[str, object]:
        return {"item": item}

    group = _group(_Decoding(range(6)), shuffle_first=shuffle)
    loader = Loader(load, group, end_at=("epoch", 1), num_workers=0)
    for indices, data, items in await each(
        loader, lambda b: (b.indices, list(b.data), list(b.additional["item"]))
    ):
        assert data == [f"item {index}" for index in indices]
        assert items == data


def test_layouts_are_of_the_documented_form() -> None:
    """((batch_size, dims...), numpy dtype, jax dtype, offset, count), on 64-byte boundaries."""
    arrays = {
        "image": ((3, 5), "uint8", "float32"),
        "label": ((), np.int16, np.dtype("int32")),
        "none": ((0, 2), "float64", "bfloat16"),
        "last": ([2], "float32", "float32"),
    }
    group = _group(range(9), 3, loader_arrays=arrays)
    assert group.loader_layouts == {
        "image": ((3, 3, 5), np.dtype("uint8"), np.dtype("float32"), 0, 45),
        "label": ((3,), np.dtype("int16"), np.dtype("int32"), 64, 3),
        "none": ((3, 0, 2), np.dtype("float64"), np.dtype("bfloat16"), 128, 0),
        "last": ((3, 2), np.dtype("float32"), np.dtype("float32"), 128, 6),
    }
    assert isinstance(group.loader_layouts, MappingProxyType)
    assert list(group.loader_layouts) == list(arrays)
    assert group.loader_size == 128 + 24
    assert (group.cache_layouts, group.cache_size) == (None, None)
    with pytest.raises(TypeError):
        group.loader_layouts["image"] = None


def test_cached_batches_have_layouts_of_their_own(tmp_path: Path) -> None:
    """Those of `cache_arrays`; without them, but with a location, those of `loader_arrays`."""
    both = _group(range(9), 3, cache_arrays={"z": ((7,), "float16", "float32")})
    assert both.cache_layouts == {"z": ((3, 7), np.dtype("float16"), np.dtype("float32"), 0, 21)}
    assert (both.cache_size, both.loader_size) == (42, 48)
    automatic = _group(range(9), 3, cache_location=tmp_path)
    assert automatic.cache_layouts == automatic.loader_layouts
    assert automatic.cache_size is None


def test_without_loader_arrays_everything_comes_from_a_cache_that_is_only_read(
    tmp_path: Path,
) -> None:
    """`cache_readonly` is implied; there is no loader layout."""
    group = _group(range(9), 3, loader_arrays=None, cache_arrays=X, cache_location=tmp_path)
    assert (group.loader_layouts, group.loader_size) == (None, None)
    assert group.cache_readonly
    assert group.cache_size == 48
    assert not _group(range(9), cache_arrays=X, cache_location=tmp_path).cache_readonly
    assert _group(range(9), cache_location=tmp_path, cache_readonly=True).cache_readonly


@pytest.mark.parametrize(
    "options", [{}, {"cache_arrays": X}, {"cache_location": "somewhere"}], ids=repr
)
def test_without_loader_arrays_both_cache_parameters_are_required(options: Any) -> None:
    """The error names all three."""
    with pytest.raises(ValueError, match=r"loader_arrays.*cache_arrays.*cache_location"):
        DataGroup(2, range(9), **options)


def test_defaults_are_those_documented(tmp_path: Path) -> None:
    """In the data's order at first, item by item later; batch by batch where there is a cache."""
    order = _group(range(9)).order
    assert (order.seed, order.shuffle_first, order.shuffle_later) == (0, False, "itemwise")
    assert _group(range(9), cache_location=tmp_path).order.shuffle_later == "batchwise"
    assert _group(range(9), cache_arrays=X).order.shuffle_later == "itemwise"
    chosen = _group(range(9), cache_location=tmp_path, shuffle_later="reseed").order
    assert chosen.shuffle_later == "reseed"
    group = _group(range(9))
    assert not group.cache_readonly
    assert group.cache_location is None


def test_the_location_may_be_a_path_or_a_string_and_need_not_exist(tmp_path: Path) -> None:
    """Making a group touches no file."""
    place = tmp_path / "not" / "there"
    assert _group(range(9), cache_location=str(place)).cache_location == place
    assert _group(range(9), cache_location=place, cache_readonly=True).cache_location == place
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("length", "batch_size", "drop_remainder", "count"),
    [(9, 4, True, 2), (9, 4, False, 3), (8, 4, False, 2), (1, 1, True, 1), (3, 5, False, 1)],
)
def test_batch_count_is_that_of_an_epoch(
    length: int, batch_size: int, drop_remainder: bool, count: int
) -> None:
    """Whole batches, and a smaller last one only where it is asked for."""
    group = _group(range(length), batch_size, drop_remainder=drop_remainder)
    assert (group.batch_count, group.batch_size) == (count, batch_size)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"batch_size": 0}, ValueError, "batch_size.*0"),
    ({"batch_size": -3}, ValueError, "batch_size.*-3"),
    ({"batch_size": "8"}, TypeError, "batch_size.*'8'"),
    ({"batch_size": 8.0}, TypeError, "batch_size.*8.0"),
    ({"batch_size": None}, TypeError, "batch_size.*None"),
    ({"batch_size": 10}, ValueError, "batch_size=10.*9 items.*drop_remainder"),
    ({"seed": 1.5}, TypeError, "seed.*1.5"),
    ({"seed": None}, TypeError, "seed.*None"),
    ({"seed": "0"}, TypeError, "seed.*'0'"),
    ({"shuffle_later": "items"}, ValueError, "shuffle_later.*'items'.*itemwise"),
    ({"shuffle_later": None}, ValueError, "shuffle_later.*None"),
    ({"data": None}, TypeError, "data=None"),
    ({"data": 5}, TypeError, "data=5"),
    ({"data": {"a": 1}}, TypeError, "data.*mapping"),
    ({"loader_arrays": {}}, LayoutError, "loader_arrays"),
    ({"loader_arrays": [1]}, LayoutError, r"loader_arrays.*\[1\]"),
    ({"loader_arrays": {"x": (3, "int8", "int8")}}, LayoutError, "loader_arrays.*'x'.*3"),
    ({"loader_arrays": {"x": ((-3,), "int8", "int8")}}, LayoutError, "loader_arrays.*'x'.*-3"),
    ({"loader_arrays": {"x": ((), "int9", "int8")}}, LayoutError, "loader_arrays.*'x'.*'int9'"),
    ({"loader_arrays": {"x": ((), "int8", "U3")}}, LayoutError, "loader_arrays.*'x'.*'U3'"),
    ({"cache_arrays": {"z": ((), object, "int8")}}, LayoutError, "cache_arrays.*'z'.*object"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD, ids=lambda value: repr(value)[:40])
def test_a_wrong_argument_is_an_error_that_names_it(
    options: Any, kind: type[Exception], message: str
) -> None:
    """At construction, with the parameter and the value."""
    arguments = {"batch_size": 2, "data": range(9), "loader_arrays": X} | options
    with pytest.raises(kind, match=message):
        DataGroup(arguments.pop("batch_size"), arguments.pop("data"), **arguments)


@pytest.mark.parametrize(
    "data",
    [[], (), "", range(0), np.zeros((0, 3)), iter(())],
    ids=["list", "tuple", "str", "range", "array", "iterator"],
)
def test_empty_data_are_an_error_that_says_so(data: Any) -> None:
    """Not a division by zero later, and by the name of the parameter."""
    for drop_remainder in (True, False):
        with pytest.raises(ValueError, match="data"):
            _group(data, drop_remainder=drop_remainder)


@pytest.mark.parametrize("location", [5, b"bytes", object])
def test_a_location_that_is_no_path_is_an_error_that_names_it(location: Any) -> None:
    with pytest.raises(TypeError, match="cache_location"):
        _group(range(9), cache_location=location)


def test_what_data_raise_while_they_are_read_is_not_hidden() -> None:
    """An error in the user's generator is the user's to see."""

    def broken() -> Iterator[int]:
        yield 1
        raise TypeError("cannot concatenate")

    with pytest.raises(TypeError, match="cannot concatenate"):
        _group(broken())


def test_numbers_may_be_numpys() -> None:
    """A batch size and a seed as they come out of arrays."""
    group = _group(range(9), np.int64(3), seed=np.uint8(7))
    assert (group.batch_size, group.order.seed) == (3, 7)
    assert type(group.batch_size) is int


def test_layouts_hold_plain_numbers() -> None:
    """Whatever kind of integer the batch size was."""
    group = _group(range(9), np.int64(3))
    assert group.loader_layouts is not None
    layout = group.loader_layouts["x"]
    assert {type(n) for n in (*layout.shape, layout.offset, layout.count, group.loader_size)} == {
        int
    }


@pytest.mark.parametrize("way", [copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))])
def test_a_group_is_a_value_that_can_be_copied(way: Callable[[Any], Any]) -> None:
    """As values can: by `copy` and by `pickle`."""
    group = _group(list(range(9)), 3)
    again = way(group)
    assert list(again) == list(group)
    assert again.order == group.order
    assert again.loader_layouts == group.loader_layouts


def test_a_group_tells_what_it_is() -> None:
    assert repr(_group(range(9), 3)) == "<DataGroup: 9 items in batches of 3, arrays ['x']>"


def test_one_group_serves_several_loaders() -> None:
    """For training here and validation there: a group owns nothing."""
    group = _group(range(9), 3)
    first = Loader(simple_load, group, validation=("epoch", 1, group))
    second = Loader(simple_load, [group, group])
    assert (first.batches_per_epoch, first.batches_per_validation) == (3, 3)
    assert second.batches_per_epoch == 6


# Items through a cache ----------------------------------------------------------------------------


async def test_items_come_through_a_cache_and_are_got_once() -> None:
    """In whatever order epochs ask for them, and in the order in which they would come without."""

    class Slow:
        asked: ClassVar[list[int]] = []

        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> dict[str, int]:
            Slow.asked.append(index)
            return {"value": index * index}

    def load(item: dict[str, int], arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = item["value"]

    config = {"data_set": {"use_cache": True, "preload_cache": False}}
    data = Slow()
    seen = []
    for cache in (None, DataCache(config, data)):
        Slow.asked.clear()
        group = DataGroup(
            4, data, loader_arrays={"x": ((), "int32", "int32")}, cache=cache, shuffle_first=True
        )
        async with Loader(load, group, end_at=("epoch", 3), num_workers=1) as loader:
            seen.append([batch.arrays["x"].tolist() async for batch in loader])
        assert len(Slow.asked) == (60 if cache is None else 20)
    assert seen[0] == seen[1]
    assert sorted(n for batch in seen[0][:5] for n in batch) == [n * n for n in range(20)]


async def test_items_that_are_awaited_come_through_a_cache_as_fetch_does() -> None:
    """Many at once, on the loop, and each once."""

    class Remote:
        asked = 0

        def __len__(self) -> int:
            return 20

        async def resolve_data(self, index: int) -> dict[str, int]:
            Remote.asked += 1
            await asyncio.sleep(0.001)
            return {"value": index}

    def load(item: dict[str, int], arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = item["value"]

    config = {"data_set": {"use_cache": True, "preload_cache": False}}
    group = DataGroup(4, range(20), loader_arrays={"x": ((), "int32", "int32")})
    async with DataCache(config, Remote()) as cache:
        loader = Loader(load, group, fetch=cache.get_or_load, end_at=("epoch", 2), num_workers=0)
        async with loader:
            seen = [n async for batch in loader for n in batch.arrays["x"].tolist()]
    assert (sorted(seen), Remote.asked) == (sorted([*range(20)] * 2), 20)


@pytest.mark.parametrize(
    ("cache", "error", "message"),
    [(5, TypeError, "cache=5 must have items by index"), ("abc", ValueError, "has 3 items, and")],
)
def test_a_cache_that_cannot_be_one_is_refused(
    cache: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DataGroup(2, "abcd", loader_arrays={"x": ((), "int8", "int8")}, cache=cache)
