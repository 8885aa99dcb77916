"""Sources: anything with a length and elements; indices without bounds; batched reads."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np
import pytest

from aioloader import MapDataset


class Recording:
    """A source that notes how it is asked."""

    def __init__(self, length: int | None = 10) -> None:
        self.length = length
        self.asked: list[Any] = []

    def __len__(self) -> int:
        return self.length  # type: ignore[return-value]

    def __getitem__(self, index: int) -> int:
        self.asked.append(index)
        return index * 100


class Batched(Recording):
    """One that reads many elements at once."""

    def __getitems__(self, indices: list[int]) -> list[int]:
        self.asked.append(list(indices))
        return [index * 100 for index in indices]


class GrainsBatched(Recording):
    """The same by the name that Grain's sources have for it."""

    def _getitems(self, indices: list[int]) -> list[int]:
        self.asked.append(list(indices))
        return [index * 100 for index in indices]


@pytest.mark.parametrize(
    "source", [[3, 1, 2], (3, 1, 2), range(1, 4), "abc", np.arange(6).reshape(3, 2), Recording(3)]
)
def test_any_sequence_is_a_source(source: Any) -> None:
    """Elements are its own."""
    dataset = MapDataset.source(source)
    assert len(dataset) == 3
    assert [np.array_equal(dataset[i], source[i]) for i in range(3)] == [True] * 3


def test_indices_have_no_bounds() -> None:
    """Whole numbers of any kind and size are taken modulo the length; so are negative ones."""
    dataset = MapDataset.source(list("abcde"))
    assert [dataset[i] for i in (5, 12, -1, -6, 10**30, np.int64(7), np.uint8(6))] == list(
        "aceeacb"
    )
    assert MapDataset.range(5)[-6] == 4
    with pytest.raises(TypeError, match=r"index must be a whole number, got 1\.5"):
        dataset[1.5]


@pytest.mark.parametrize("dataset", [MapDataset.source([]), MapDataset.range(0)])
def test_empty_sources_have_no_elements(dataset: MapDataset[Any]) -> None:
    """Iteration ends at once; an index is an error that says so."""
    assert len(dataset) == 0
    assert list(dataset) == []
    with pytest.raises(ZeroDivisionError, match="the dataset is empty, so it has no element 0"):
        dataset[0]


def test_what_is_no_source_is_refused() -> None:
    """By the name of what it lacks."""
    with pytest.raises(TypeError, match="source=5 has no __len__"):
        MapDataset.source(5)
    with pytest.raises(TypeError, match=r"source=\{1\} has no __getitem__"):
        MapDataset.source({1})


def test_a_source_may_not_know_its_length() -> None:
    """Then it gets indices as they are, and only what needs a length fails."""
    source = Recording(None)
    dataset = MapDataset.source(source).map(lambda x: x + 1)
    assert [dataset[3], dataset[-1]] == [301, -99]
    with pytest.raises(TypeError, match="has no length"):
        len(dataset)
    with pytest.raises(TypeError, match="has no length"):
        dataset.shuffle(seed=1)


@pytest.mark.parametrize("arguments", [(5,), (2, 8), (2, 8, 3), (8, 2, -3), (0,), (4, 4), (-3,)])
def test_ranges_are_pythons(arguments: tuple[int, ...]) -> None:
    """Element by element, by iteration and in length; elements are plain whole numbers."""
    dataset = MapDataset.range(*arguments)
    assert list(dataset) == list(range(*arguments))
    assert len(dataset) == len(range(*arguments))
    assert all(type(element) is int for element in dataset)


def test_ranges_take_their_arguments_by_name() -> None:
    """And refuse a step of zero at once."""
    assert list(MapDataset.range(start=2, stop=8, step=3)) == [2, 5]
    with pytest.raises(ValueError, match="zero"):
        MapDataset.range(1, 5, 0)


@pytest.mark.parametrize("kind", [Batched, GrainsBatched])
def test_batches_read_at_once_where_the_source_can(kind: type[Recording]) -> None:
    """Through any stages, with one call for each batch; single elements are read alone."""
    source = kind(10)
    dataset = MapDataset.source(source).shuffle(seed=1).map(lambda x: x + 1).batch(4)
    expected = [i * 100 + 1 for i in MapDataset.range(10).shuffle(seed=1)]
    assert [batch.tolist() for batch in (dataset[0], dataset[1], dataset[2])] == [
        expected[:4],
        expected[4:8],
        expected[8:],
    ]
    assert [len(indices) for indices in source.asked] == [4, 4, 2]
    assert MapDataset.source(source)[13] == 300
    assert source.asked[-1] == 3


def test_a_batched_source_has_to_return_all_that_it_was_asked_for() -> None:
    """Fewer elements are an error, and not another batch."""

    class Short(Batched):
        def __getitems__(self, indices: list[int]) -> list[int]:
            return [0]

    with pytest.raises(ValueError, match="returned 1 elements for 3 indices"):
        MapDataset.source(Short()).batch(3)[0]


def test_elements_are_read_one_by_one_between_transforms() -> None:
    """A batch of what is read singly holds one element before its transform at a time."""
    events: list[str] = []

    class Source(Recording):
        def __getitem__(self, index: int) -> int:
            events.append("read")
            return index

    def transform(element: int) -> int:
        events.append("map")
        return element

    MapDataset.source(Source()).shuffle(seed=1).map(transform).batch(3)[0]
    assert events == ["read", "map"] * 3


def test_a_source_may_be_read_by_a_coroutine_function() -> None:
    """An index is then waited for, and a batch reads its elements at once."""
    most = running = 0

    class Remote(Recording):
        async def __getitem__(self, index: int) -> int:  # type: ignore[override]
            nonlocal most, running
            running += 1
            most = max(most, running)
            for _ in range(3):
                await asyncio.sleep(0)
            running -= 1
            return index * 100

    dataset = MapDataset.source(Remote(10))
    assert [dataset[3], dataset[11], dataset[-1]] == [300, 100, 900]
    assert dataset.shuffle(seed=1).batch(4)[0].tolist() == [
        100 * i for i in MapDataset.range(10).shuffle(seed=1)[0:4]
    ]
    assert most == 4


def test_a_dataset_is_a_sequence_for_others() -> None:
    """Its own elements may be a source again."""
    inner = MapDataset.range(4).map(lambda x: x * x)
    assert list(MapDataset.source(inner).batch(2)[1]) == [4, 9]
    assert sys.getsizeof(inner) < 1000
