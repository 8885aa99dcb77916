"""Minibatches of a dataset: the same whoever loads them, sized, and clean at any end."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import pickle
import signal
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from support import descendants, until

from aioloader import DataLoader, LoadError, WorkerDied, cycled_minibatches
from aioloader.protocols import DataLoaderProtocol, SizedIterable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ON_LOOPS = ["asyncio", "uvloop"]


class Pair(NamedTuple):
    """A named tuple in an element."""

    left: Any
    right: Any


@dataclasses.dataclass
class Point:
    """A dataclass in an element, with a field that belongs to its structure."""

    x: Any
    unit: str = dataclasses.field(default="mm", metadata={"static": True})


class Numbers:
    """Elements that tell their index in every kind of leaf."""

    def __init__(self, length: int = 10) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        assert type(index) is int
        return {
            "row": np.full((2, 3), index, "float32"),
            "index": index,
            "name": f"number {index}",
            "pair": Pair(index / 2, [bool(index % 2), None]),
            "point": Point(np.int8(index % 100)),
        }


class Awaited(Numbers):
    """The same, to be awaited."""

    async def __getitem__(self, index: int) -> Any:
        await asyncio.sleep(0.001 * (index % 3))
        return super().__getitem__(index)


def same(left: Any, right: Any) -> bool:
    """Tell whether two minibatches are equal, in their types too."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, Point):
        return left.unit == right.unit and same(left.x, right.x)
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    return bool(left == right)


def indices(minibatches: Any) -> list[list[int]]:
    return [m["index"].tolist() for m in minibatches]


async def collected(minibatches: Any) -> list[Any]:
    return [minibatch async for minibatch in minibatches]


WAYS: dict[str, Callable[[], dict[str, Any]]] = {
    "no workers": lambda: {"dataset": Numbers()},
    "1 worker": lambda: {"dataset": Numbers(), "num_workers": 1},
    "2 workers": lambda: {"dataset": Numbers(), "num_workers": 2},
    "coroutines": lambda: {"dataset": Awaited()},
}
all_ways = pytest.mark.parametrize("way", list(WAYS))


@pytest.mark.parametrize(
    ("seed", "drop_last", "order"),
    [
        (None, True, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (0, True, [[4, 6, 2, 7], [3, 5, 9, 0]]),
        (0, False, [[4, 6, 2, 7], [3, 5, 9, 0], [8, 1]]),
        (1, True, [[8, 4, 7, 0], [1, 2, 5, 9]]),
    ],
)
@all_ways
def test_the_order_for_a_seed_is_known(
    way: str, seed: int | None, drop_last: bool, order: list[list[int]]
) -> None:
    with DataLoader(minibatch_size=4, drop_last=drop_last, **WAYS[way]()) as loader:
        minibatches = loader.minibatches(shuffle_seed=seed)
        assert isinstance(loader, DataLoaderProtocol)
        assert isinstance(minibatches, SizedIterable)
        assert len(minibatches) == loader.minibatch_count() == len(order)
        assert indices(minibatches) == order
        assert indices(minibatches) == order  # again


@all_ways
async def test_a_minibatch_is_the_same_whoever_loads_it(way: str) -> None:
    """Arrays, numbers, strings and containers, down to their types and dtypes."""
    expected = list(DataLoader(Numbers(), 4, drop_last=False).minibatches(3))
    async with DataLoader(minibatch_size=4, drop_last=False, **WAYS[way]()) as loader:
        got = await collected(loader.minibatches(3))
        assert len(got) == len(expected)
        assert all(map(same, got, expected))
        assert got[0]["row"].shape == (4, 2, 3)
        assert got[0]["name"].tolist()[0].startswith("number ")
        assert got[0]["point"].unit == "mm"


def total(elements: list[Any]) -> Any:
    """A collate function whose result has no leading dimension, and leaves of any kind."""
    rows = np.stack([e["row"] for e in elements])
    return OrderedDict(sum=rows.sum(0), count=len(elements), names=[e["name"] for e in elements])


@all_ways
def test_a_collate_function_makes_the_minibatch(way: str) -> None:
    """What it returns arrives as it is, also where the last minibatch is smaller."""
    expected = list(DataLoader(Numbers(), 4, 0, False, total).minibatches(0))
    options = WAYS[way]()
    with DataLoader(minibatch_size=4, drop_last=False, collate_fn=total, **options) as loader:
        got = list(loader.minibatches(0))
    assert all(map(same, got, expected))
    assert [m["count"] for m in got] == [4, 4, 2]
    assert type(got[0]) is OrderedDict


class Uneven:
    """Elements that change their dtype, and at index 7 their shape."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        if index == 7:
            return {"x": [1.0, 2.0]}
        return {"x": [index if index < 2 else index + 0.5]}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_elements_that_differ_from_the_first_are_stacked_all_the_same(num_workers: int) -> None:
    """Nothing is cut down to the first element's dtype; what cannot be stacked is said."""
    with DataLoader(Uneven(), 2, num_workers) as loader:
        epoch = iter(loader.minibatches(None))
        got = [next(epoch)["x"][0] for _ in range(3)]
        assert [x.tolist() for x in got] == [[0, 1], [2.5, 3.5], [4.5, 5.5]]
        assert [x.dtype.name for x in got] == ["int64", "float64", "float64"]
        with pytest.raises(LoadError, match="minibatch 3 could not be loaded"):
            next(epoch)
        with pytest.raises(StopIteration):
            next(epoch)


class Failing(Numbers):
    """One element cannot be loaded."""

    def __getitem__(self, index: int) -> Any:
        if index == 5:
            raise KeyError("five is missing")
        return super().__getitem__(index)


@pytest.mark.parametrize("collate", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_comes_in_its_turn_and_names_the_index(num_workers: int, collate: bool) -> None:
    """The epoch goes on behind it."""
    options: dict[str, Any] = {"collate_fn": total} if collate else {}
    with DataLoader(Failing(), 2, num_workers, **options) as loader:
        epoch = iter(loader.minibatches(None))
        assert len([next(epoch) for _ in range(2)]) == 2
        with pytest.raises(LoadError, match=r"(?s)minibatch 2 .*five is missing") as caught:
            next(epoch)
        assert "5" in str(caught.value)
        assert isinstance(caught.value.__cause__, KeyError)
        assert len(list(epoch)) == 2


class Deadly(Numbers):
    """One element ends whoever loads it."""

    def __getitem__(self, index: int) -> Any:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_an_element_that_kills_is_named_and_the_rest_arrives() -> None:
    with DataLoader(Deadly(), 2, 2) as loader:
        epoch = iter(loader.minibatches(None))
        assert next(epoch)["index"].tolist() == [0, 1]
        with pytest.raises(WorkerDied, match=r"minibatch 1 .*item 3\).*SIGKILL"):
            next(epoch)
        assert indices(epoch) == [[4, 5], [6, 7], [8, 9]]


def workers() -> set[int]:
    return {pid for pid in descendants(os.getpid()) if _is_worker(pid)}


def _is_worker(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            parent = int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return False
    return parent != os.getpid()


def test_workers_are_kept_between_epochs_and_end_with_the_loader() -> None:
    loader = DataLoader(Numbers(), 4, 2)
    assert workers() == set()
    assert len(list(loader.minibatches(0))) == 2
    first = workers()
    assert len(first) == 2
    assert len(list(loader.minibatches(1))) == 2
    next(iter(loader.minibatches(2)))  # abandoned
    assert len(list(loader.minibatches(3))) == 2
    assert first & workers()
    loader.close()
    assert workers() == set()
    assert len(list(loader.minibatches(0))) == 2  # it may be used again
    loader.close()
    loader.close()


async def test_a_loader_that_is_collected_ends_its_workers() -> None:
    loader = DataLoader(Numbers(), 4, 1)
    assert len(await collected(loader.minibatches(0))) == 2
    assert len(workers()) == 1
    del loader
    gc.collect()
    await until(lambda: not workers())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epochs_at_once_do_not_mix(num_workers: int) -> None:
    with DataLoader(Numbers(), 4, num_workers) as loader:
        pairs = zip(loader.minibatches(0), loader.minibatches(1), strict=True)
        got = [(a["index"].tolist(), b["index"].tolist()) for a, b in pairs]
    assert got == [([4, 6, 2, 7], [8, 4, 7, 0]), ([3, 5, 9, 0], [1, 2, 5, 9])]


@all_ways
async def test_an_epoch_after_a_break_is_clean(way: str) -> None:
    async with DataLoader(minibatch_size=2, **WAYS[way]()) as loader:
        for seed in range(4):
            async for minibatch in loader.minibatches(seed):
                assert len(minibatch["index"]) == 2
                break
        assert [m["index"].tolist() async for m in loader.minibatches(0)] == [
            [4, 6],
            [2, 7],
            [3, 5],
            [9, 0],
            [8, 1],
        ]


@all_ways
async def test_all_minibatches_may_be_kept(way: str) -> None:
    """However few slots there are; and none of them changes later."""
    async with DataLoader(minibatch_size=2, **{**WAYS[way](), "dataset": _long(way)}) as loader:
        kept = await collected(loader.minibatches(None))
    assert indices(kept) == [[n, n + 1] for n in range(0, 100, 2)]


def _long(way: str) -> Numbers:
    return Awaited(100) if way == "coroutines" else Numbers(100)


@all_ways
async def test_a_cancelled_wait_loses_nothing(way: str) -> None:
    async with DataLoader(minibatch_size=2, **WAYS[way]()) as loader:
        epoch = loader.minibatches(None).__aiter__()
        got: list[list[int]] = []
        while len(got) < 5:
            waiting = asyncio.ensure_future(epoch.__anext__())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            if waiting.cancelled():
                got.append((await epoch.__anext__())["index"].tolist())
            else:
                got.append(waiting.result()["index"].tolist())
        assert got == [[n, n + 1] for n in range(0, 10, 2)]
        with pytest.raises(StopAsyncIteration):
            await epoch.__anext__()


async def test_many_elements_are_awaited_at_once() -> None:
    class Counting(Numbers):
        now = most = 0

        async def __getitem__(self, index: int) -> Any:
            Counting.now += 1
            Counting.most = max(Counting.most, Counting.now)
            await asyncio.sleep(0.01)
            Counting.now -= 1
            return super().__getitem__(index)

    loader = DataLoader(Counting(200), 4, max_concurrency=32)
    assert len(await collected(loader.minibatches(0))) == 50
    assert Counting.most == 32


async def test_a_plain_loop_over_coroutines_in_a_running_loop_says_what_to_write() -> None:
    with pytest.raises(RuntimeError, match="async for minibatch in"):
        iter(DataLoader(Awaited(), 4).minibatches(0))


def test_a_closed_loader_does_not_look_like_the_end() -> None:
    loader = DataLoader(Numbers(), 2, 1)
    epoch = iter(loader.minibatches(None))
    next(epoch)
    loader.close()
    with pytest.raises(RuntimeError, match="closed before this epoch had ended"):
        next(epoch)


def test_a_loader_is_a_value_that_travels() -> None:
    loader = pickle.loads(pickle.dumps(DataLoader(range(10), 4, drop_last=False)))
    assert [m.tolist() for m in loader.minibatches(0)] == [[4, 6, 2, 7], [3, 5, 9, 0], [8, 1]]
    with pytest.raises(dataclasses.FrozenInstanceError):
        loader.minibatch_size = 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"minibatch_size": 0}, ValueError, "minibatch_size must be at least 1, got 0"),
        ({"minibatch_size": 2.5}, TypeError, "minibatch_size must be a whole number"),
        ({"num_workers": -1}, ValueError, "num_workers must be at least 0"),
        ({"collate_fn": 3}, TypeError, "collate_fn=3 is not callable"),
        ({"dataset": 3}, TypeError, "dataset=3 has no __getitem__"),
        ({"dataset": []}, ValueError, "dataset is empty"),
        ({"item_timeout": 0}, ValueError, "item_timeout must be positive"),
    ],
)
def test_wrong_arguments_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        DataLoader(**{"dataset": range(10), "minibatch_size": 4, **options})


@pytest.mark.parametrize("seed", [-1, 1.5, "0"])
def test_wrong_seeds_are_refused(seed: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="shuffle_seed"):
        DataLoader(range(10), 4).minibatches(seed)


# Without an end -----------------------------------------------------------------------------------


@all_ways
async def test_cycling_shuffles_every_epoch_anew(way: str) -> None:
    async with DataLoader(minibatch_size=4, **WAYS[way]()) as loader:
        cycle = cycled_minibatches(loader, 0)
        got = [(await anext(cycle))["index"].tolist() for _ in range(4)]
        await cycle.aclose()
    assert got == [[4, 6, 2, 7], [3, 5, 9, 0], [8, 4, 7, 0], [1, 2, 5, 9]]


def test_cycling_without_a_seed_repeats() -> None:
    cycle = cycled_minibatches(DataLoader(range(4), 2), None)
    assert [next(cycle).tolist() for _ in range(3)] == [[0, 1], [2, 3], [0, 1]]


def test_cycling_over_no_minibatches_is_refused() -> None:
    with pytest.raises(ValueError, match="no minibatches in an epoch"):
        cycled_minibatches(DataLoader(range(3), 4), 0)


async def test_cycling_takes_any_loader() -> None:
    """One that knows only `for`, in a thread."""

    class Plain:
        minibatch_size = 1

        def minibatch_count(self) -> int:
            return 2

        def minibatches(self, shuffle_seed: int | None) -> SizedIterable[str]:
            return [f"{shuffle_seed}a", f"{shuffle_seed}b"]  # type: ignore[return-value]

    cycle = cycled_minibatches(Plain(), 7)
    assert [await anext(cycle) for _ in range(3)] == ["7a", "7b", "8a"]
    with pytest.raises(RuntimeError, match="async for"):
        next(cycle)


def test_results_of_workers_are_not_pickled(tmp_path: Path) -> None:
    """What fits an array is written where it is read."""
    folder = str(tmp_path)

    class Unpicklable(np.ndarray):
        def __reduce__(self) -> Any:
            open(f"{folder}/pickled", "x").close()
            return super().__reduce__()

    class Images:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            return np.full((64, 64), index, "uint8").view(Unpicklable).view(np.ndarray)

    with DataLoader(Images(), 4, 1) as loader:
        first, second = loader.minibatches(None)
    assert (first[:, 0, 0].tolist(), second[:, 5, 5].tolist()) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert first.base is not None
    assert not list(tmp_path.iterdir())
