"""Coroutine functions as transforms: by index, on a loop, at once, and never blocking it."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import both_loops, run_on

from aioloader import Map, MapDataset

if TYPE_CHECKING:
    from collections.abc import Callable


async def later(x: int) -> int:
    await asyncio.sleep(0)
    return 10 * x


class Fetch(Map):
    async def map(self, element: int) -> int:
        return await later(element)


class Calling:
    async def __call__(self, element: int) -> int:
        return await later(element)


class Runner:
    """Calls plain functions in threads, and counts who runs."""

    def __init__(self, at_once: int = 100) -> None:
        self.in_threads: list[str] = []
        self.free = asyncio.Semaphore(at_once)

    async def __call__(self, function: Callable[..., Any], /, *args: Any) -> Any:
        self.in_threads.append(getattr(function, "__qualname__", repr(function)))
        return await asyncio.to_thread(function, *args)

    async def awaiting(self, function: Callable[..., Any], /, *args: Any) -> Any:
        async with self.free:
            return await function(*args)


def get(dataset: Any, *indices: int, at_once: int = 100) -> list[Any]:
    async def main() -> list[Any]:
        run = Runner(at_once)
        return [await dataset._aget(index, run) for index in indices]

    return asyncio.run(main())


@pytest.mark.parametrize(
    "transform", [later, Fetch(), Calling(), functools.partial(later), Calling().__call__]
)
def test_every_kind_of_coroutine_function_counts(transform: Any) -> None:
    dataset = MapDataset.range(3).map(transform)
    assert dataset[2] == 20
    assert get(dataset, 0, 1, -1) == [0, 10, 20]


async def keep(x: int) -> bool:
    await asyncio.sleep(0)
    return x % 3 == 0


async def noise(x: int, rng: np.random.Generator) -> int:
    first = rng.integers(0, 1000)
    await asyncio.sleep(0)
    return x + int(first + rng.integers(0, 1000))


async def tag(i: int, x: int) -> tuple[int, int]:
    await asyncio.sleep(0)
    return i, x


async def total(batch: list[int]) -> int:
    await asyncio.sleep(0)
    return sum(batch)


class Choice:
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index % 2, index


def plain(function: Any) -> Any:
    """Return the same as a plain function."""

    def call(*args: Any) -> Any:
        return asyncio.run(function(*args))

    return call


PIPELINES: dict[str, Callable[[MapDataset[Any], Any], MapDataset[Any]]] = {
    "map": lambda ds, f: ds.map(f(later)),
    "filter": lambda ds, f: ds.filter(f(keep)).map(lambda x: -x),
    "random_map": lambda ds, f: ds.seed(1).shuffle().random_map(f(noise)),
    "map_with_index": lambda ds, f: ds.map_with_index(f(tag)),
    "after filter": lambda ds, f: ds.filter(lambda x: x % 2).map(f(later)).map_with_index(f(tag)),
    "batch": lambda ds, f: ds.map(f(later)).shuffle(seed=1).batch(4),
    "batch_fn": lambda ds, f: ds.map(f(later)).batch(4, batch_fn=f(total)),
    "mix": lambda ds, f: MapDataset.mix([ds, ds.map(f(later))], [1, 2])[1:7].repeat(2),
    "select": lambda ds, f: MapDataset.select_from_datasets([ds.map(f(later)), ds], Choice()),
    "concatenate": lambda ds, f: MapDataset.concatenate([ds[:3], ds.map(f(later))]).batch(3),
}


def as_lists(elements: Any) -> list[Any]:
    return [x.tolist() if isinstance(x, np.ndarray) else x for x in elements]


@pytest.mark.parametrize("name", PIPELINES)
def test_elements_are_those_of_plain_functions(name: str) -> None:
    """By index, awaited, by `for` and by `async for`."""
    make = PIPELINES[name]
    expected, dataset = make(MapDataset.range(10), plain), make(MapDataset.range(10), lambda f: f)
    assert dataset._is_async
    assert not expected._is_async
    indices = [0, 3, len(dataset) + 1, -1]
    of_plain = as_lists(expected[i] for i in indices)
    assert as_lists(dataset[i] for i in indices) == of_plain
    assert as_lists(get(dataset, *indices)) == of_plain

    async def collected() -> list[Any]:
        return [x async for x in dataset]

    epoch = as_lists(expected)
    assert as_lists(asyncio.run(collected())) == epoch
    assert as_lists(dataset) == epoch


def test_an_index_inside_of_a_loop_is_an_error_that_says_what_to_write() -> None:
    dataset = MapDataset.range(3).map(later)

    async def main() -> None:
        with pytest.raises(RuntimeError, match="write `async for element in dataset"):
            dataset[0]
        assert await asyncio.to_thread(dataset.__getitem__, 1) == 10
        assert [x async for x in dataset[1:2]] == [10]

    asyncio.run(main())


@both_loops
def test_plain_functions_around_coroutines_stay_off_the_loop(loop: str) -> None:
    """Before and after; what has to be called is only called where that is needed."""
    threads: dict[str, int] = {}

    def note(name: str, x: int) -> int:
        threads[name] = threading.get_ident()
        return x

    async def on_loop(x: int) -> int:
        return note("coroutine", x)

    dataset = (
        MapDataset.source(range(4))
        .shuffle(seed=1)
        .map(functools.partial(note, "before"))
        .map(on_loop)
        .repeat(2)
        .map(functools.partial(note, "after"))
    )

    async def main() -> None:
        run = Runner()
        await dataset._aget(0, run)
        assert len(run.in_threads) == 2
        here = threading.get_ident()
        assert threads["coroutine"] == here
        assert here not in (threads["before"], threads["after"])

    run_on(loop, main())


def test_what_is_in_memory_needs_no_thread() -> None:
    """Ranges, lists and arrays in any order are looked up where they are."""

    async def main() -> None:
        run = Runner()
        order = MapDataset.concatenate([MapDataset.range(5), MapDataset.source([1, 2])])
        await order.shuffle(seed=1)[::-1].map(later)._aget(3, run)
        assert run.in_threads == []
        await MapDataset.range(5).map(abs).map(later)._aget(3, run)
        assert len(run.in_threads) == 1

    asyncio.run(main())


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_a_batch_awaits_its_elements_at_once(at_once: int) -> None:
    """As many as the caller allows, and in order."""
    running = most = 0

    async def watched(x: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1
        return x

    dataset = MapDataset.range(8).map(watched).batch(8)
    assert get(dataset, 0, at_once=at_once)[0].tolist() == list(range(8))
    assert most == min(at_once, 8)


def test_of_several_errors_the_first_in_order_counts() -> None:
    """With where it happened; the other elements have ended by then."""
    ended: list[int] = []

    async def fail(x: int) -> int:
        for _ in range(8 - x):
            await asyncio.sleep(0)
        ended.append(x)
        if x in (2, 3):
            raise KeyError(x)
        return x

    dataset = MapDataset.range(8).map(fail).batch(4)
    for read in (lambda: dataset[0], lambda: get(dataset, 0)):
        ended.clear()
        with pytest.raises(KeyError, match="2") as caught:
            read()
        assert sorted(ended) == [0, 1, 2, 3]
        assert [note.split("(")[0] for note in caught.value.__notes__] == ["in map"]


def test_an_error_in_one_of_several_datasets_names_it() -> None:
    async def fail(x: int) -> int:
        raise KeyError(x)

    mixed = MapDataset.mix([MapDataset.range(3), MapDataset.range(3).map(fail)])
    with pytest.raises(KeyError) as caught:
        mixed[1]
    assert caught.value.__notes__[-1] == "in datasets[1] of mix, at index 0"


def test_a_cancelled_element_leaves_no_task_behind() -> None:
    async def main() -> None:
        started = asyncio.Event()

        async def forever(x: int) -> int:
            started.set()
            await asyncio.Event().wait()
            return x

        dataset = MapDataset.range(8).map(forever).batch(4)
        task = asyncio.ensure_future(dataset._aget(0, Runner()))
        await started.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_generators_of_coroutines_that_overlap_are_not_shared() -> None:
    """Each has its own random numbers while it waits."""
    dataset = MapDataset.range(8).random_map(noise, seed=5)
    assert dataset.batch(8)[0].tolist() == [dataset[i] for i in range(8)]
