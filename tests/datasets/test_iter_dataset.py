"""IterDataset: what each of its methods does, and the orders and numbers that Grain has."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from golden import GOLDEN

from aioloader import (
    DatasetOptions,
    Filter,
    IterDataset,
    Map,
    MapDataset,
    MapWithIndex,
    MultiprocessingOptions,
    RandomMap,
    ReadOptions,
    WithOptionsIterDataset,
)


def numbers(*bounds: int) -> IterDataset[int]:
    """Return a range for iteration."""
    return MapDataset.range(*bounds).to_iter_dataset()


def lists(dataset: Any) -> list[Any]:
    """Return the elements, arrays among them as lists."""
    return [x.tolist() if isinstance(x, np.ndarray) else x for x in dataset]


async def awaited(dataset: Any) -> list[Any]:
    """Return the elements by `async for`."""
    return [element async for element in dataset]


# The examples of the documentation that this follows


def test_the_documented_examples_hold() -> None:
    """With the results that are stated there."""
    assert list(IterDataset.mix([numbers(5), numbers(7, 10)])) == [0, 7, 1, 8, 2, 9, 3]
    assert lists(numbers(5).batch(batch_size=2)) == [[0, 1], [2, 3], [4]]
    assert list(numbers(5).filter(lambda x: x % 2 == 0)) == [0, 2, 4]
    assert list(numbers(5).map(lambda x: x + 10)) == [10, 11, 12, 13, 14]
    indexed = numbers(5).map_with_index(lambda i, x: (i, 2**x))
    assert list(indexed) == [(0, 1), (1, 2), (2, 4), (3, 8), (4, 16)]
    drawn = numbers(5).seed(7).random_map(lambda x, rng: x + rng.integers(5, 10))
    assert set(drawn).issubset(set(range(5, 15)))


def test_default_seeds_follow_the_documented_examples() -> None:
    """Stages differ, an own seed is not affected, a later seed hides an earlier one."""

    def draw(x: int, rng: np.random.Generator) -> int:
        return int(rng.integers(1 << 30))

    def pair(x: int, rng: np.random.Generator) -> tuple[int, int]:
        return x, int(rng.integers(1 << 30))

    both = list(numbers(5).seed(1).random_map(draw).random_map(pair))
    assert all(one != other for one, other in both)
    own = [list(numbers(5).seed(s).random_map(draw, seed=9)) for s in (1, 2)]
    assert own[0] == own[1]
    hidden = [list(numbers(5).seed(s).map(float).seed(3).random_map(draw)) for s in (1, 2)]
    assert hidden[0] == hidden[1]

    def mixed(s: int) -> list[int]:
        parts = [MapDataset.range(9).seed(k).shuffle().to_iter_dataset() for k in (5, s)]
        return list(IterDataset.mix(parts).random_map(draw))

    assert mixed(1) == mixed(1) != mixed(2)


def test_pipe_hands_the_dataset_on() -> None:
    """First, and with all other arguments, also one that is called func."""

    def call(dataset: Any, *args: int, func: str) -> Any:
        return dataset.map(lambda x: (x, args, func))

    assert list(numbers(1).pipe(call, 1, 2, func="f")) == [(0, (1, 2), "f")]


# Orders and numbers as recorded


@pytest.mark.parametrize("recorded", GOLDEN["iter"], ids=lambda r: f"seed {r['seed']}")
async def test_random_numbers_are_as_recorded(recorded: dict[str, Any]) -> None:
    """By default seed, at all ways through."""
    dataset = numbers(10).seed(recorded["seed"])
    dataset = dataset.random_map(lambda x, rng: x + rng.integers(0, 1000))
    assert list(dataset) == recorded["elements"] == await awaited(dataset)

    async def add(x: int, rng: np.random.Generator) -> int:
        return x + int(rng.integers(0, 1000))

    dataset = numbers(10).seed(recorded["seed"]).random_map(add)
    assert await awaited(dataset) == recorded["elements"]


def test_pinned_random_numbers() -> None:
    """With a seed of the stage's own."""
    dataset = numbers(10).random_map(lambda x, rng: x + rng.integers(0, 10), seed=42)
    assert list(dataset) == [9, 3, 6, 11, 4, 7, 9, 9, 8, 9]


@pytest.mark.parametrize("recorded", GOLDEN["mix"], ids=lambda r: f"{r['lengths']}{r['weights']}")
async def test_mixtures_are_as_recorded(recorded: dict[str, Any]) -> None:
    """They end where the input whose turn it is has ended."""
    parts = [numbers(1000 * k, 1000 * k + n) for k, n in enumerate(recorded["lengths"])]
    dataset = IterDataset.mix(parts, recorded["weights"])
    assert list(dataset) == recorded["iter"] == await awaited(dataset)


def test_a_mixture_stays_at_its_end() -> None:
    """Though other inputs have more; an empty input ends it when its turn comes."""
    iterator = iter(IterDataset.mix([numbers(9), numbers(1)]))
    assert list(iterator) == [0, 0, 1]
    state = iterator.get_state()
    assert state["stop"] is True
    assert list(iterator) == []
    again = iter(IterDataset.mix([numbers(9), numbers(1)]))
    again.set_state(state)
    assert list(again) == []
    assert list(IterDataset.mix([numbers(3), numbers(0)])) == [0]


# None, batches, transforms as classes


def test_none_is_passed_on_by_maps_and_counted() -> None:
    """Functions of maps do not see it, and filters and batches do."""
    odd = MapDataset.range(4).filter(lambda x: x % 2)
    assert list(odd.to_iter_dataset()) == [1, 3]
    sparse = odd.to_iter_dataset(allow_nones=True)
    assert list(sparse) == [None, 1, None, 3]
    assert list(sparse.map(lambda x: x + 1)) == [None, 2, None, 4]
    assert list(sparse.map_with_index(lambda i, x: (i, x))) == [None, (1, 1), None, (3, 3)]
    drawn = list(sparse.random_map(lambda x, rng: rng.integers(1 << 30), seed=1))
    dense = list(numbers(4).random_map(lambda x, rng: rng.integers(1 << 30), seed=1))
    assert drawn == [None, dense[1], None, dense[3]]
    seen: list[Any] = []
    list(sparse.filter(lambda x: seen.append(x) or True))
    assert seen == [None, 1, None, 3]
    assert list(sparse.batch(2, batch_fn=tuple)) == [(None, 1), (None, 3)]


async def test_batches_have_remainders_and_functions() -> None:
    """Of either kind, and also behind a filter."""
    assert lists(numbers(5).batch(2, drop_remainder=True)) == [[0, 1], [2, 3]]
    assert lists(numbers(0).batch(2)) == []
    behind = numbers(9).filter(lambda x: x != 4).batch(3)
    assert lists(behind) == [[0, 1, 2], [3, 5, 6], [7, 8]]

    async def total(elements: list[int]) -> int:
        return sum(elements)

    assert list(numbers(5).batch(2, batch_fn=sum)) == [1, 5, 4]
    assert await awaited(numbers(5).batch(2, batch_fn=total)) == [1, 5, 4]
    trees = numbers(3).map(lambda x: {"x": x, "y": (str(x), None)}).batch(2)
    first, last = trees
    assert first["x"].tolist() == [0, 1]
    assert first["y"][0].tolist() == ["0", "1"]
    assert last["y"][1] is None


class _Add(Map):
    def map(self, element: int) -> int:
        return element + 1


class _Pair(MapWithIndex):
    async def map_with_index(self, index: int, element: int) -> tuple[int, int]:
        return index, element


class _Even(Filter):
    def filter(self, element: int) -> bool:
        return element % 2 == 0


class _Draw(RandomMap):
    def random_map(self, element: int, rng: np.random.Generator) -> int:
        return element + int(rng.integers(0, 10))


async def test_transforms_may_be_instances() -> None:
    """Their methods are called, plain ones and coroutine functions."""
    assert list(numbers(3).map(_Add())) == [1, 2, 3]
    assert list(numbers(3).filter(_Even())) == [0, 2]
    assert await awaited(numbers(2).map_with_index(_Pair())) == [(0, 0), (1, 1)]
    assert list(numbers(10).random_map(_Draw(), seed=42)) == [9, 3, 6, 11, 4, 7, 9, 9, 8, 9]


# Other sources


async def test_any_iterable_is_a_source() -> None:
    """Plain or async; each iterator begins anew."""

    class Ticks:
        async def __aiter__(self) -> Any:
            for k in range(4):
                yield k

    assert list(IterDataset.source("abc").batch(2, batch_fn="".join)) == ["ab", "c"]
    plain = IterDataset.source([3, 1, 2])
    assert list(plain) == list(plain) == await awaited(plain) == [3, 1, 2]
    ticks = IterDataset.source(Ticks()).map(lambda x: 10 * x)
    assert await awaited(ticks) == await awaited(ticks) == [0, 10, 20, 30]
    with pytest.raises(TypeError, match="neither"):
        IterDataset.source(3)


# Arguments


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda ds: ds.batch(0), ValueError, "batch_size must be at least 1"),
        (lambda ds: ds.batch("2"), TypeError, "batch_size"),
        (lambda ds: ds.map(3), TypeError, "transform=3"),
        (lambda ds: ds.map(_Add), TypeError, "an instance"),
        (lambda ds: ds.random_map(_Draw()), ValueError, "seed"),
        (lambda ds: ds.random_map(_Draw(), seed=-1), ValueError, "seed"),
        (lambda ds: ds.seed(-1), ValueError, "seed"),
        (lambda ds: IterDataset.mix([ds], [0]), ValueError, "weight"),
        (lambda ds: IterDataset.mix([ds, ds], [1, -1]), ValueError, "weight"),
        (lambda ds: IterDataset.mix([ds, ds], [1]), (ValueError, AssertionError), "weight"),
        (lambda ds: IterDataset.mix([]), ValueError, "empty"),
        (lambda ds: IterDataset.mix([MapDataset.range(3)]), TypeError, r"datasets\[0\]"),
        (lambda ds: MultiprocessingOptions(num_workers=-1), ValueError, "num_workers"),
        (lambda ds: MultiprocessingOptions(2, 0), ValueError, "per_worker_buffer_size"),
        (lambda ds: ReadOptions(num_threads=-1), ValueError, "num_threads"),
        (lambda ds: ReadOptions(prefetch_buffer_size=-1), ValueError, "prefetch_buffer_size"),
        (lambda ds: DatasetOptions(filter_warn_threshold_ratio=2), ValueError, "between 0 and 1"),
        (
            lambda ds: WithOptionsIterDataset(MapDataset.range(3), DatasetOptions()),
            TypeError,
            "parent",
        ),
    ],
)
def test_wrong_arguments_are_refused_at_once(make: Any, error: Any, text: str) -> None:
    """Before anything is iterated over, with the argument's name."""
    with pytest.raises(error, match=text):
        make(numbers(3))


def test_options_have_the_documented_defaults(caplog: pytest.LogCaptureFixture) -> None:
    """And say where a small buffer keeps threads idle."""
    options = ReadOptions()
    assert (options.num_threads, options.prefetch_buffer_size) == (16, 500)
    assert MultiprocessingOptions(3).per_worker_buffer_size == 1
    defaults = DatasetOptions()
    assert defaults.filter_warn_threshold_ratio == 0.9
    assert defaults.filter_raise_threshold_ratio is None
    with caplog.at_level(logging.WARNING, "aioloader"):
        ReadOptions(4, 4)
        ReadOptions(0, 0)
        ReadOptions(4, 0)
        assert not caplog.records
        ReadOptions(4, 3)
        assert "prefetch_buffer_size=3" in caplog.text


def test_without_workers_mp_prefetch_has_no_effect() -> None:
    """It returns the dataset itself; `prefetch` is its deprecated name."""
    dataset = numbers(3)
    assert dataset.mp_prefetch(MultiprocessingOptions(num_workers=0)) is dataset
    with pytest.warns(DeprecationWarning, match="mp_prefetch"):
        assert dataset.prefetch(MultiprocessingOptions(num_workers=0)) is dataset


def test_datasets_are_immutable_and_say_what_they_are() -> None:
    """A chain leaves its beginning as it was; `parents` and `repr` tell of it."""
    first = numbers(4)
    second = first.map(abs)
    third = IterDataset.mix([second.batch(2), second])
    assert list(first.parents[0]) == [0, 1, 2, 3]
    assert second.parents == (first,)
    assert [type(parent) for parent in third.parents] == [type(second)] * 2
    assert "range(4).to_iter_dataset().map(abs)" in repr(second)
    assert list(first) == [0, 1, 2, 3]
