"""Datasets interleaved: Grain's order, datasets opened and read ahead, and workers for those."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from typing import Any

import pytest
from crews import manned
from golden import EXTRAS
from support import until
from walking import check_walks, walk

from aioloader import (
    InterleaveIterDataset,
    IterDataset,
    MapDataset,
    MultiprocessingOptions,
    is_worker,
)


def numbers(*bounds: int) -> IterDataset[int]:
    return MapDataset.range(*bounds).to_iter_dataset()


def failing(stop: int, *where: int) -> IterDataset[int]:
    """Return whole numbers, but for some that are errors."""

    def check(x: int) -> int:
        if x in where:
            raise ValueError(f"no {x}")
        return x

    return numbers(stop).map(check)


@pytest.mark.parametrize("case", EXTRAS["interleave"], ids=str)
def test_datasets_are_interleaved_as_in_grain(case: dict[str, Any]) -> None:
    """Whichever of them end first, or are empty."""
    parts = [MapDataset.range(10 * k, 10 * k + n) for k, n in enumerate(case["lengths"])]
    interleaved = InterleaveIterDataset(parts, cycle_length=case["cycle_length"])
    assert check_walks(interleaved) == case["expected"]


class Shop:
    """Makes datasets of two numbers, and knows which it has made, and in which threads."""

    def __init__(self, *faulty: int) -> None:
        self.opened: list[int] = []
        self.threads: set[str] = set()
        self.faulty = faulty

    def __call__(self, k: int) -> IterDataset[int]:
        self.opened.append(k)
        self.threads.add(threading.current_thread().name)
        if k in self.faulty:
            raise OSError(f"cannot open {k}")
        return numbers(10 * k, 10 * k + 2)

    def has_opened(self, count: int) -> Any:
        return lambda: sorted(self.opened) == list(range(count))


@pytest.mark.parametrize("buffers", [(1, 0), (0, 3), (1, 1), (2, 3)])
def test_as_many_datasets_are_opened_ahead_as_was_said(buffers: tuple[int, int]) -> None:
    """By threads; and the elements are the same however many."""
    threads, size = buffers
    shop = Shop()
    interleaved = InterleaveIterDataset(
        MapDataset.range(7).map(shop),
        cycle_length=2,
        num_make_iter_threads=threads,
        make_iter_buffer_size=size,
    )
    ahead = size if threads else 0
    with iter(interleaved) as iterator:
        assert shop.opened == [0, 1]
        assert walk(iterator, 4) == [0, 10, 1, 11]
        asyncio.run(until(shop.has_opened(2 + ahead)))
        assert walk(iterator, 1) == [20]
        asyncio.run(until(shop.has_opened(3 + ahead)))
        assert walk(iterator) == [30, 21, 31, 40, 50, 41, 51, 60, 61]
    assert shop.opened[:2] == [0, 1]
    assert sorted(shop.opened) == list(range(7))
    assert ("aioloader-open" in shop.threads) == (ahead > 0)
    assert check_walks(interleaved) == [0, 10, 1, 11, 20, 30, 21, 31, 40, 50, 41, 51, 60, 61]


@pytest.mark.parametrize("size", [0, 2])
async def test_datasets_are_not_opened_on_the_loop(size: int) -> None:
    """But for the first ones, which iteration begins with."""
    shop = Shop()
    interleaved = InterleaveIterDataset(
        MapDataset.range(5).map(shop), cycle_length=1, make_iter_buffer_size=size
    )
    async with aiter(interleaved) as iterator:
        assert await anext(iterator) == 0
        shop.threads.clear()
        assert [x async for x in iterator] == [1, 10, 11, 20, 21, 30, 31, 40, 41]
        assert shop.threads == {"aioloader-open" if size else "aioloader-datasets"}


@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_dataset_that_cannot_be_opened_is_an_error_in_its_turn(size: int) -> None:
    """Which names it, and the next one gets the place."""
    shop = Shop(3)
    interleaved = InterleaveIterDataset(
        MapDataset.range(5).map(shop), cycle_length=2, make_iter_buffer_size=size
    )
    iterator = iter(interleaved)
    assert walk(iterator, 5) == [0, 10, 1, 11, 20]
    with pytest.raises(OSError, match="cannot open 3") as caught:
        next(iterator)
    assert any("datasets[3] of interleave" in note for note in caught.value.__notes__)
    assert sorted(walk(iterator)) == [21, 40, 41]


class Slow:
    """Elements that are made when they are asked for, and counted."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, x: int) -> int:
        self.made.append(x)
        return x

    def has_made(self, at_least: int) -> bool:
        return len(self.made) >= at_least


@pytest.mark.parametrize("has_index", [True, False])
def test_elements_are_made_ahead_of_use(has_index: bool) -> None:
    """As many as was said, or a few more where there is no index; of datasets in use alone."""
    counts = [Slow() for _ in range(3)]
    parts: list[Any] = [MapDataset.range(9).map(count) for count in counts]
    if not has_index:
        parts = [IterDataset.source(range(9)).map(count) for count in counts]
    interleaved = InterleaveIterDataset(parts, cycle_length=2, iter_buffer_size=4)
    with iter(interleaved) as iterator:
        assert walk(iterator, 2) == [0, 0]
        for count in counts[:2]:
            asyncio.run(until(functools.partial(count.has_made, 5)))  # one delivered, and four
            assert len(count.made) == 5 or not has_index
        assert not counts[2].made
    assert len(check_walks(interleaved)) == 27


async def later(x: int) -> int:
    await asyncio.sleep(0)
    return -x


def test_what_is_read_ahead_says_nothing_of_later_stages() -> None:
    """A coroutine function behind has as many calls at once as without."""
    parts = [MapDataset.range(9), MapDataset.range(9)]
    with iter(InterleaveIterDataset(parts, cycle_length=2).map(later)) as iterator:
        assert next(iterator) == 0
        assert iterator._read_options is None
    with pytest.raises(ValueError, match="iter_buffer_size must be at least 0, got -1"):
        InterleaveIterDataset(parts, cycle_length=2, iter_buffer_size=-1)


numbers_told: list[tuple[int, int]] = []


def tell(index: int, count: int) -> None:
    numbers_told.append((index, count))


def where(x: int) -> tuple[int, bool, int]:
    return x, is_worker(), os.getpid()


@pytest.mark.parametrize(("workers", "cycle", "inside"), [(3, 2, 12), (2, 3, 9)])
def test_workers_make_the_elements_of_datasets_in_use(
    workers: int, cycle: int, inside: int
) -> None:
    """The same ones, by no more workers than there are: a place that gets none does without."""
    lazy = MapDataset.range(4).map(lambda k: MapDataset.range(10 * k, 10 * k + 3).map(where))
    interleaved = InterleaveIterDataset(lazy, cycle_length=cycle)
    whole = [x for x, _, _ in interleaved]
    dataset = manned(interleaved, workers)
    with iter(dataset) as iterator:
        begun = [next(iterator) for _ in range(5)]
        state = iterator.get_state()
        found = begun + list(iterator)
    assert [x for x, _, _ in found] == whole
    assert sum(is_inside for _, is_inside, _ in found) == inside
    with iter(interleaved) as plain:
        plain.set_state(state)
        assert [x for x, _, _ in plain] == whole[5:]
    with iter(dataset) as other:
        other.set_state(state)
        assert [x for x, _, _ in other] == whole[5:]


def test_workers_know_their_number_among_all() -> None:
    """Whichever dataset they are for."""
    lazy = MapDataset.range(2).map(lambda k: MapDataset.range(2).map(lambda x: numbers_told[0]))
    options = MultiprocessingOptions(num_workers=3)
    interleaved = InterleaveIterDataset(lazy, cycle_length=2)
    with iter(interleaved.mp_prefetch(options, tell)) as iterator:
        seen = list(iterator)
    assert {count for _, count in seen} == {3}
    assert {index for index, _ in seen} <= {0, 1, 2}
    assert 2 in {index for index, _ in seen}


def test_interleaving_goes_on_behind_an_error() -> None:
    """With the dataset whose turn it is; the note says which one it was."""
    parts = [failing(4, 1), numbers(10, 13)]
    interleaved = InterleaveIterDataset(parts, cycle_length=2)
    assert check_walks(interleaved) == [0, 10, ("ValueError", "no 1"), 11, 2, 12, 3]
    iterator = iter(interleaved)
    walk(iterator, 2)
    with pytest.raises(ValueError, match="no 1") as caught:
        next(iterator)
    assert "in datasets[0] of interleave" in caught.value.__notes__
    assert list(InterleaveIterDataset([], cycle_length=3)) == []
    with pytest.raises(TypeError, match="datasets must be an IterDataset, got 3"):
        InterleaveIterDataset([3], cycle_length=2)
