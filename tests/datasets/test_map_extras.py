"""Windows, tuples, and several elements from one: stages for `pipe`."""

from __future__ import annotations

import asyncio
from typing import Any

import cloudpickle
import numpy as np
import pytest

from aioloader import MapDataset
from aioloader._datasets.map_extras import (
    FlatMapMapDataset,
    WindowShuffleMapDataset,
    ZipMapDataset,
)
from aioloader._datasets.transforms import FlatMap


def elements(dataset: MapDataset[Any], start: int, stop: int) -> list[Any]:
    return [dataset[i] for i in range(start, stop)]


def test_windows_as_in_the_document() -> None:
    dataset = (
        MapDataset.range(1000).pipe(WindowShuffleMapDataset, window_size=128, seed=0).batch(16)
    )
    found = np.concatenate(list(dataset))
    assert [set(found[k : k + 128]) == set(range(1000)[k : k + 128]) for k in range(0, 1000, 128)]
    assert sorted(found) == list(range(1000))
    assert found.tolist() != sorted(found)


def test_windows_are_others_in_each_epoch() -> None:
    """And go through the epochs of their parent."""
    inner = MapDataset.range(10).shuffle(seed=1)
    dataset = WindowShuffleMapDataset(inner, window_size=4, seed=0)
    for epoch in (-1, 0, 1):
        start = 10 * epoch
        assert set(elements(dataset, start, start + 4)) == set(elements(inner, start, start + 4))
        assert sorted(elements(dataset, start, start + 10)) == list(range(10))
    orders = {tuple(np.argsort(elements(dataset, k, k + 4))) for k in range(0, 200, 10)}
    assert len(orders) > 5


def test_windows_take_a_seed_from_above() -> None:
    base = MapDataset.range(20)
    derived = base.seed(42).pipe(WindowShuffleMapDataset, window_size=5)
    own = WindowShuffleMapDataset(base, window_size=5, seed=3329053876)
    assert list(derived) == list(own)
    with pytest.raises(ValueError, match="WindowShuffleMapDataset needs a seed"):
        base.pipe(WindowShuffleMapDataset, window_size=5)
    with pytest.raises(ValueError, match="window_size must be at least 1, got 0"):
        base.pipe(WindowShuffleMapDataset, window_size=0, seed=1)


def test_zip_makes_tuples() -> None:
    """Of each index, in each epoch, with None for what is missing."""
    ten = MapDataset.range(10)
    dataset = ZipMapDataset([ten, ten.shuffle(seed=1), ten.filter(lambda x: x % 2)])
    assert len(dataset) == 10
    for index in (-3, 0, 1, 25):
        assert dataset[index] == tuple(parent[index] for parent in dataset.parents)
    assert dataset[0][2] is None


def test_batches_of_tuples_are_tuples_of_batches() -> None:
    """Gathered where all are arrays."""
    features, labels = np.arange(30).reshape(10, 3), np.arange(10)
    of_arrays = ZipMapDataset([MapDataset.source(features), MapDataset.source(labels)])
    of_lists = ZipMapDataset([MapDataset.source(list(features)), MapDataset.source(list(labels))])
    for first, second in zip(
        of_arrays.shuffle(seed=1).batch(4), of_lists.shuffle(seed=1).batch(4), strict=True
    ):
        assert [x.tolist() for x in first] == [x.tolist() for x in second]
    assert of_arrays._stacked(range(4)) is not None
    mixed = MapDataset.mix([of_arrays, of_lists]).batch(4)
    assert mixed[0][1].tolist() == [0, 0, 1, 1]


def test_zip_refuses_what_does_not_match() -> None:
    three = MapDataset.range(3)
    with pytest.raises(ValueError, match=r"same length, and have the lengths \[3, 4\]"):
        ZipMapDataset([three, MapDataset.range(4)])
    with pytest.raises(ValueError, match="parents is empty"):
        ZipMapDataset([])
    with pytest.raises(TypeError, match=r"parents\[1\] must be a MapDataset, got \[1\]"):
        ZipMapDataset([three, [1]])  # type: ignore[list-item]


class Copies(FlatMap):
    max_fan_out = 3

    def flat_map(self, element: int) -> list[int]:
        return [element] * element


def test_several_elements_are_made_of_each() -> None:
    """As many as there are; None stands for the rest of them."""
    dataset = FlatMapMapDataset(MapDataset.range(4), Copies())
    assert len(dataset) == 12
    found = [None, None, None, 1, None, None, 2, 2, None, 3, 3, 3]
    assert elements(dataset, -12, 24) == found * 3
    assert list(dataset) == [1, 2, 2, 3, 3, 3]
    assert list(dataset[3:8]) == [1, 2, 2]


def test_a_function_will_do_and_may_be_a_coroutine_function() -> None:
    async def copies(x: int) -> list[int]:
        await asyncio.sleep(0)
        return [x] * x

    base = MapDataset.range(4).filter(lambda x: x != 2)
    for transform in (lambda x: [x] * x, copies):
        dataset = base.pipe(FlatMapMapDataset, transform, max_fan_out=3)
        assert list(dataset) == [1, 3, 3, 3]


def test_flat_maps_are_checked() -> None:
    base = MapDataset.range(5)
    with pytest.raises(ValueError, match="flat_map returned 4 elements, max_fan_out=3") as caught:
        FlatMapMapDataset(base, Copies())[12]
    assert "at index 4" in caught.value.__notes__[0]
    with pytest.raises(TypeError, match="max_fan_out must be a whole number, got None"):
        FlatMapMapDataset(base, lambda x: [x])
    with pytest.raises(ValueError, match="batch cannot follow"):
        FlatMapMapDataset(base, Copies()).batch(2)


def test_a_run_of_indices_calls_the_function_once_for_each_element() -> None:
    calls: list[int] = []

    def copies(x: int) -> list[int]:
        calls.append(x)
        return [x, x]

    dataset = FlatMapMapDataset(MapDataset.range(4), copies, max_fan_out=2)
    assert list(dataset._each(range(1, 7))) == [0, 1, 1, 2, 2, 3]
    assert calls == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "make",
    [
        lambda ds: WindowShuffleMapDataset(ds, window_size=3, seed=1),
        lambda ds: ZipMapDataset([ds, ds]),
        lambda ds: FlatMapMapDataset(ds, Copies()),
    ],
)
def test_they_travel_and_show_what_they_are(make: Any) -> None:
    dataset = make(MapDataset.range(4)).map_with_index(lambda i, x: (i, x))
    assert list(cloudpickle.loads(cloudpickle.dumps(dataset))) == list(dataset)
    assert repr(dataset).startswith("MapDataset.")
