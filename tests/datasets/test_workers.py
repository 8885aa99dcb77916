"""Elements by worker processes: the same as without, in the same order, from any position."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from crews import all_of, manned
from support import LOOPS, run_on

from aioloader import (
    IterDataset,
    MapDataset,
    MultiprocessingOptions,
    ReadOptions,
    is_worker,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def same(left: Any, right: Any) -> bool:
    """Tell whether two elements are equal, in their types too."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    return bool(left == right)


async def awaited(dataset: Any) -> list[Any]:
    return [element async for element in dataset]


def rich(index: int) -> dict[str, Any]:
    """Return an element with leaves of many kinds, and of shapes that differ."""
    return {
        "row": np.full((index % 4, 3), index, "float32"),
        "index": index,
        "name": f"number {index}",
        "nested": [np.int8(index), (None, {"deep": np.arange(index % 3)}), b"bytes" * index],
        "flags": np.array(index % 2 == 0),
        "word": np.array(["a", "bc"]),
        "objects": np.array([None, index], object),
    }


def noisy(element: int, rng: np.random.Generator) -> int:
    return element * 1000 + int(rng.integers(1000))


def fails_at_5(element: Any) -> Any:
    if element == 5:
        raise ValueError("five")
    return element


def halves(dataset: Any) -> Any:
    return dataset.filter(lambda x: x % 2 == 0)


PIPELINES: dict[str, Callable[[], IterDataset[Any]]] = {
    "range": lambda: MapDataset.range(23).to_iter_dataset(),
    "empty": lambda: MapDataset.range(0).to_iter_dataset(),
    "rich": lambda: MapDataset.range(23).seed(1).shuffle().map(rich).to_iter_dataset(),
    "maps": lambda: MapDataset.range(23).to_iter_dataset().map(lambda x: x + 1).map(str),
    "filter": lambda: halves(MapDataset.range(23).to_iter_dataset()).map(lambda x: -x),
    "filter, batch": lambda: halves(MapDataset.range(23).to_iter_dataset()).batch(3),
    "batch, drop": lambda: MapDataset.range(23).to_iter_dataset().batch(4, drop_remainder=True),
    "batch of a map": lambda: MapDataset.range(23).batch(3).to_iter_dataset(),
    "absent": lambda: halves(MapDataset.range(23)).to_iter_dataset(),
    "absent, allowed": lambda: halves(MapDataset.range(23)).to_iter_dataset(allow_nones=True),
    "random": lambda: MapDataset.range(23).seed(4).to_iter_dataset().random_map(noisy),
    "random, index": lambda: (
        MapDataset.range(23)
        .seed(4)
        .to_iter_dataset()
        .random_map(noisy)
        .map_with_index(lambda i, x: (i, x))
    ),
    "filter, random, index": lambda: (
        halves(MapDataset.range(23).seed(4).to_iter_dataset())
        .random_map(noisy)
        .map_with_index(lambda i, x: (i, x))
    ),
    "random, filter": lambda: halves(
        MapDataset.range(23).seed(4).to_iter_dataset().random_map(noisy)
    ),
    "absent, random": lambda: (
        halves(MapDataset.range(23).seed(4)).to_iter_dataset().random_map(noisy)
    ),
    "none from a function, random": lambda: (
        MapDataset.range(23)
        .seed(4)
        .map(lambda x: None if x % 4 == 1 else x)
        .to_iter_dataset()
        .random_map(noisy)
        .map_with_index(lambda i, x: (i, x))
    ),
    "errors": lambda: (
        MapDataset.range(23)
        .seed(4)
        .map(fails_at_5)
        .to_iter_dataset()
        .map_with_index(lambda i, x: (i, x))
        .map(lambda pair: pair if pair[1] != 9 else 1 // 0)
        .random_map(lambda pair, rng: (*pair, int(rng.integers(1000))))
    ),
    "mix": lambda: IterDataset.mix(
        [MapDataset.range(9).to_iter_dataset(), MapDataset.range(100, 120).to_iter_dataset()],
        [1, 2],
    ),
    "mix, batch": lambda: (
        IterDataset.mix(
            [halves(MapDataset.range(9).to_iter_dataset()), MapDataset.range(9).to_iter_dataset()]
        )
        .batch(2)
        .map_with_index(lambda i, x: (i, x))
    ),
    "repeat": lambda: MapDataset.range(5).seed(1).shuffle().repeat(4).to_iter_dataset(),
}
all_pipelines = pytest.mark.parametrize("name", list(PIPELINES))


@all_pipelines
def test_elements_do_not_depend_on_the_number_of_workers(name: str) -> None:
    """Nor do their types, their order, the errors between them and the positions behind them."""
    plain = iter(PIPELINES[name]())
    expected, states = [], [plain.get_state()]
    while True:
        found = all_of(itertools.islice(plain, 1))
        if not found:
            break
        expected += found
        states.append(plain.get_state())
    for workers in turn_of(name, [(1, 2), (2, 3), (3, 1)]):
        with iter(manned(PIPELINES[name](), workers)) as iterator:
            assert iterator.get_state() == states[0]
            for element, state in zip(expected, states[1:], strict=True):
                (got,) = all_of(itertools.islice(iterator, 1))
                assert same(got, element)
                assert iterator.get_state() == state
            assert all_of(iterator) == []
            assert all_of(iterator) == []


@all_pipelines
def test_positions_are_good_for_any_number_of_workers(name: str) -> None:
    """Saved and restored again and again, each time with another number, none at all included."""
    whole = all_of(iter(PIPELINES[name]()))
    state, pieces, dataset = None, [], PIPELINES[name]()
    numbers = turn_of(name, [(2, 0, 1), (0, 3, 0, 2), (1, 2), (3, 0, 1)])
    for workers, length in zip(numbers, [*[3, 7, 4][1 - len(numbers) :], 100], strict=True):
        iterator = iter(manned(dataset, workers))
        with iterator:
            if state is not None:
                iterator.set_state(json.loads(state))
            for _ in range(length):
                pieces += all_of(itertools.islice(iterator, 1))
            state = json.dumps(iterator.get_state())
    assert all(itertools.starmap(same, zip(pieces, whole, strict=True)))


def turn_of(name: str, choices: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Return what one pipeline tries: starting workers takes long, and all do it in turn."""
    return choices[list(PIPELINES).index(name) % len(choices)]


@pytest.mark.parametrize("name", ["rich", "filter, batch", "mix, batch", "errors"])
async def test_async_iteration_gives_the_same(name: str) -> None:
    expected = all_of(iter(PIPELINES[name]()))
    async with aiter(manned(PIPELINES[name]())) as iterator:
        got = []
        while len(got) < len(expected):
            try:
                got.append(await anext(iterator))
            except Exception as error:
                got.append(f"{type(error).__name__}: {error}")
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)
    assert all(itertools.starmap(same, zip(got, expected, strict=True)))


def test_default_seeds_are_those_without_workers() -> None:
    """A random stage behind the workers draws what it would have drawn."""

    def draws(workers: int) -> list[int]:
        dataset = manned(MapDataset.range(9).seed(4).to_iter_dataset(), workers)
        return list(dataset.random_map(noisy))

    assert draws(0) == draws(1) == draws(2)


def test_no_workers_give_the_dataset_itself() -> None:
    dataset = MapDataset.range(9).to_iter_dataset()
    assert dataset.mp_prefetch(MultiprocessingOptions(num_workers=0)) is dataset


def test_building_changes_no_dataset() -> None:
    """Neither does iterating: a batch at the end is still what it was."""
    dataset = MapDataset.range(9).to_iter_dataset().batch(2)
    expected = [batch.tolist() for batch in dataset]
    with iter(manned(dataset)) as iterator:
        assert [batch.tolist() for batch in iterator] == expected
    assert [batch.tolist() for batch in dataset] == expected
    assert dataset.parents[0].parents[0] is not None


# What is handed out


def picture(index: int) -> np.ndarray:
    return np.full((256, 1024), index % 200, np.uint8)


def test_elements_stay_whole_for_as_long_as_they_are_kept() -> None:
    """Many more than there are slots: nothing waits for those that the program holds."""
    with iter(manned(MapDataset.range(60).map(picture).to_iter_dataset())) as iterator:
        kept = list(iterator)
    gc.collect()
    assert all((array == index % 200).all() for index, array in enumerate(kept))
    assert all(array.flags.writeable for array in kept)
    kept[3][...] = 7
    assert (kept[4] == 4).all()


def grows(index: int) -> Any:
    size = [10, 3_000, 300_000, 5_000_000][index // 8 % 4]
    return {"x": np.full(size, index, np.int8), "text": "t" * (size // 10), "n": index}


@pytest.mark.parametrize("workers", [1, 2])
def test_elements_may_be_larger_than_all_before(workers: int) -> None:
    """Slots grow while the workers stay: arrays and texts of any size come as they are."""
    dataset = MapDataset.range(64).map(grows).to_iter_dataset().map(lambda x: (x, os.getpid()))
    pids = set()
    with iter(manned(dataset, workers)) as iterator:
        for index, (element, pid) in enumerate(iterator):
            assert same(element, grows(index))
            pids.add(pid)
            del element
        (session,) = iterator._crew.host._sessions  # type: ignore[attr-defined]
    assert session.feed.key > 0
    assert 1 <= len(pids) <= workers


def test_small_arrays_own_their_memory() -> None:
    """One that is kept does not keep those that came with it."""
    dataset = MapDataset.range(50).map(lambda i: np.full(64, i, "float32")).to_iter_dataset()
    with iter(manned(dataset)) as iterator:
        assert all(array.base is None for array in iterator)


# Coroutines


async def fetch(index: int) -> dict[str, Any]:
    await asyncio.sleep(0.001 * (index % 3))
    if index == 7:
        raise ValueError("seven")
    return {"index": index, "by": os.getpid(), "raw": bytes([index]) * 20_000}


def decode(payload: dict[str, Any]) -> dict[str, Any]:
    return {"x": np.frombuffer(payload["raw"], np.uint8), "by": payload["by"], "in": is_worker()}


def remote(length: int = 30, **options: Any) -> IterDataset[Any]:
    return MapDataset.range(length).map(fetch).map(decode).to_iter_dataset(ReadOptions(**options))


@pytest.mark.parametrize("how", [*LOOPS, "for"])
def test_coroutines_run_in_the_program_and_the_rest_in_workers(how: str) -> None:
    """An error of theirs comes at its element, too."""
    seen: list[Any] = []

    async def read() -> None:
        async with aiter(manned(remote())) as iterator:
            while len(seen) < 30:
                try:
                    seen.append(await anext(iterator))
                except ValueError as error:
                    seen.append(error)

    if how in LOOPS:
        run_on(how, read())
    else:
        with iter(manned(remote())) as iterator:
            while len(seen) < 30:
                try:
                    seen.append(next(iterator))
                except ValueError as error:
                    seen.append(error)
    assert isinstance(seen.pop(7), ValueError)
    for index, element in enumerate(seen):
        assert element["x"][0] == index + (index >= 7)
        assert element["by"] == os.getpid()
        assert element["in"]


async def test_batches_of_what_is_awaited_are_made_by_workers() -> None:
    dataset = MapDataset.range(8, 40).map(fetch).map(decode).seed(0).shuffle()
    batches = dataset.batch(4, batch_fn=lambda es: ([int(e["x"][0]) for e in es], is_worker()))
    plain = [batch for batch, _ in await awaited(batches.to_iter_dataset())]
    async with aiter(manned(batches.to_iter_dataset())) as iterator:
        got = [element async for element in iterator]
    assert [batch for batch, _ in got] == plain
    assert all(inside for _, inside in got)


async def test_as_many_coroutines_run_at_once_as_there_are_threads() -> None:
    running, most = 0, 0

    async def count(index: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        return index

    dataset = MapDataset.range(60).map(count).map(lambda x: -x)
    options = ReadOptions(num_threads=5)
    async with aiter(manned(dataset.to_iter_dataset(options))) as iterator:
        assert [x async for x in iterator] == [-k for k in range(60)]
    assert most == 5
