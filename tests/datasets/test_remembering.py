"""`cached`: a dataset whose elements are made once, and which tells no lies about later epochs."""

from __future__ import annotations

import asyncio
from typing import Any

import cloudpickle
import numpy as np
import pytest
from support import both_loops, run_on

from aioloader import DataGroup, Loader, MapDataset, ReadOptions, cached

calls: list[int] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


def slow(x: int) -> dict[str, Any]:
    calls.append(x)
    return {"x": np.full(3, x), "name": str(x)}


def test_elements_are_made_once() -> None:
    """By index, past the end, by slices, and in later epochs."""
    ds = MapDataset.range(6).map(slow).pipe(cached)
    plain = MapDataset.range(6).map(slow)
    for index in (*range(6), 3, 8, -1):
        found, expected = ds[index], plain[index]
        assert found["name"] == expected["name"]
        assert (found["x"] == expected["x"]).all()
    calls.clear()
    assert [e["name"] for e in ds] == [e["name"] for e in ds.repeat(2)][6:] == list("012345")
    assert [e["name"] for e in ds[4:1:-1]] == ["4", "3", "2"]
    assert calls == []
    assert ds.cache.statistics().items == 6


def test_what_comes_behind_differs_from_epoch_to_epoch() -> None:
    ds = MapDataset.range(20).map(slow).pipe(cached).seed(3).shuffle().repeat(3)
    plain = MapDataset.range(20).map(slow).map(lambda e: e).seed(3).shuffle().repeat(3)
    assert [e["name"] for e in ds] == [e["name"] for e in plain]
    assert len(calls) == 20 + 60


def test_absent_elements_are_remembered_too() -> None:
    ds = MapDataset.range(6).map(slow).filter(lambda e: int(e["name"]) % 2).pipe(cached)
    for _ in range(2):
        assert [e["name"] for e in ds] == ["1", "3", "5"]
    assert len(calls) == 6


@both_loops
def test_coroutines_are_awaited_once(loop: Any) -> None:
    async def fetch(x: int) -> int:
        await asyncio.sleep(0.001)
        calls.append(x)
        return x * 2

    async def main() -> None:
        ds = MapDataset.range(30).map(fetch).pipe(cached)
        for _ in range(2):
            options = ReadOptions(num_threads=8, prefetch_buffer_size=8)
            assert [x async for x in ds.to_iter_dataset(options)] == list(range(0, 60, 2))

    run_on(loop, main())
    assert sorted(calls) == list(range(30))


@pytest.mark.parametrize(
    "make",
    [
        lambda ds: ds.shuffle(seed=1),
        lambda ds: ds.random_map(lambda x, rng: x, seed=1),
        lambda ds: ds.map_with_index(lambda i, x: x),
        lambda ds: ds.shuffle(seed=1).map(lambda x: x).batch(2),
        lambda ds: MapDataset.mix([ds, ds]),
    ],
)
def test_what_differs_from_epoch_to_epoch_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="differs from epoch to epoch"):
        make(MapDataset.range(8)).pipe(cached)


def test_what_has_no_end_is_refused() -> None:
    with pytest.raises(ValueError, match="no end"):
        MapDataset.range(8).repeat().pipe(cached)


def test_a_bound_is_kept() -> None:
    ds = MapDataset.range(50).map(lambda x: np.zeros(1000)).pipe(cached, max_bytes=50_000)
    list(ds)
    now = ds.cache.statistics()
    assert 0 < now.bytes <= 50_000
    assert now.evictions > 0


def test_a_copy_elsewhere_begins_with_nothing() -> None:
    ds = MapDataset.range(4).map(slow).pipe(cached)
    list(ds)
    copy = cloudpickle.loads(cloudpickle.dumps(ds))
    assert copy.cache.statistics().items == 0
    assert [e["name"] for e in copy] == list("0123")


async def test_it_may_be_the_data_of_a_group() -> None:
    ds = MapDataset.range(8).map(slow).pipe(cached)
    group = DataGroup(4, ds, loader_arrays={"x": ((3,), "int64", "int32")})

    def load(item: Any, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = item["x"]

    async with Loader(load, group, num_workers=0, end_at=("epoch", 2)) as loader:
        sums = [int(batch.arrays["x"].sum()) async for batch in loader]
    assert sum(sums) == 2 * 3 * sum(range(8))
    assert len(calls) == 8
