"""MapDataset: its stages one by one, as the API document states them."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import cloudpickle
import numpy as np
import pytest

from aioloader import (
    Filter,
    FilterTransform,
    Map,
    MapDataset,
    MapTransform,
    MapWithIndex,
    MapWithIndexTransform,
    RandomMap,
    RandomMapTransform,
)


def elements(dataset: MapDataset[Any], start: int = 0, stop: int | None = None) -> list[Any]:
    return [dataset[i] for i in range(start, len(dataset) if stop is None else stop)]


def add_random(x: int, rng: np.random.Generator) -> int:
    return x + int(rng.integers(0, 1000))


# map, map_with_index, filter


def test_map_has_the_length_and_epochs_of_its_parent() -> None:
    dataset = MapDataset.range(5).map(lambda x: x + 10)
    assert list(dataset) == [10, 11, 12, 13, 14]
    assert elements(dataset, -2, 7) == [13, 14, 10, 11, 12, 13, 14, 10, 11]


def test_map_with_index_counts_on_past_the_end() -> None:
    """And below zero: it is the index that was asked for."""
    dataset = MapDataset.range(3, 6).map_with_index(lambda i, x: (i, x))
    assert list(dataset) == [(0, 3), (1, 4), (2, 5)]
    assert (dataset[3], dataset[-1]) == ((3, 3), (-1, 5))


def test_filter_leaves_none_in_the_place_of_elements() -> None:
    dataset = MapDataset.range(5).filter(lambda x: x % 2 == 0)
    assert len(dataset) == 5
    assert elements(dataset) == [0, None, 2, None, 4]
    assert list(dataset) == [0, 2, 4]
    assert list(dataset.to_iter_dataset(allow_nones=True)) == [0, None, 2, None, 4]


def test_transforms_are_not_called_for_none() -> None:
    """None of the four; what they return may be None."""
    seen: list[Any] = []

    def note(*args: Any) -> Any:
        seen.extend(arg for arg in args if not isinstance(arg, np.random.Generator))
        return args[-1] if len(args) < 2 else args[0]

    odd = MapDataset.range(4).filter(lambda x: x % 2)
    stages = [
        odd.map(note),
        odd.filter(note),
        odd.map_with_index(lambda i, x: note(x)),
        odd.random_map(lambda x, rng: note(x), seed=1),
    ]
    assert [elements(stage) for stage in stages] == [[None, 1, None, 3]] * 4
    assert None not in seen
    assert elements(MapDataset.range(3).map(lambda x: None).map(note)) == [None] * 3


# transforms as classes


class Double(MapTransform):
    def map(self, element: int) -> int:
        return 2 * element


class Tag(MapWithIndexTransform):
    def map_with_index(self, index: int, element: int) -> tuple[int, int]:
        return index, element


class Noise(RandomMapTransform):
    def random_map(self, element: int, rng: np.random.Generator) -> int:
        return element + int(rng.integers(0, 10))


class Odd(FilterTransform):
    def filter(self, element: int) -> bool:
        return element % 2 == 1


def test_transforms_may_be_instances_of_classes() -> None:
    dataset = MapDataset.range(4)
    assert list(dataset.map(Double())) == [0, 2, 4, 6]
    assert list(dataset.map_with_index(Tag())) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert list(dataset.filter(Odd())) == [1, 3]
    noisy = dataset.random_map(Noise(), seed=42)
    assert list(noisy) == list(dataset.random_map(lambda x, rng: x + rng.integers(0, 10), seed=42))


def test_both_names_of_a_class_are_one() -> None:
    assert (Map, MapWithIndex, RandomMap, Filter) == (
        MapTransform,
        MapWithIndexTransform,
        RandomMapTransform,
        FilterTransform,
    )


def test_the_method_counts_also_where_an_instance_can_be_called() -> None:
    class Both(Map):
        def map(self, element: int) -> str:
            return "map"

        def __call__(self, element: int) -> str:
            return "call"

    assert MapDataset.range(1).map(Both())[0] == "map"


def test_classes_of_others_with_the_same_method_will_do() -> None:
    """So that transforms that were written for Grain need no change."""

    class Foreign:
        def map(self, element: int) -> int:
            return -element

    assert MapDataset.range(3).map(Foreign())[2] == -2


@pytest.mark.parametrize("method", ["map", "map_with_index", "filter", "random_map"])
def test_what_is_no_transform_is_refused(method: str) -> None:
    """At once, with its value; so is a class in the place of an instance."""
    apply = getattr(MapDataset.range(3).seed(1), method)
    with pytest.raises(TypeError, match="transform=5 is neither callable nor an instance of "):
        apply(5)
    kind = {"map": Double, "map_with_index": Tag, "filter": Odd, "random_map": Noise}[method]
    with pytest.raises(TypeError, match="is a class: pass an instance of it"):
        apply(kind)


# random_map and seeds


def test_random_maps_need_a_seed() -> None:
    with pytest.raises(ValueError, match=r"random_map needs a seed: pass seed=\.\.\., or call"):
        MapDataset.range(3).random_map(add_random)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        MapDataset.range(3).random_map(add_random, seed=-1)
    assert MapDataset.range(3).random_map(add_random, seed=893247023984)[0] >= 0


def test_random_numbers_depend_on_seed_and_index_alone() -> None:
    """In any order, repeatedly, in any epoch, and below zero, where they differ from all others."""
    dataset = MapDataset.range(10).random_map(lambda x, rng: rng.random(), seed=1)
    forwards = elements(dataset, -10, 20)
    assert [dataset[i] for i in range(19, -11, -1)] == forwards[::-1]
    assert len(set(forwards)) == 30
    assert elements(dataset, 2**64, 2**64 + 10) == forwards[10:20]


def test_what_a_transform_draws_does_not_reach_another_element() -> None:
    """Not how much, nor what numpy keeps of it: half a word, or a normal number."""
    greedy = MapDataset.range(10).random_map(
        lambda x, rng: [rng.integers(0, 9, dtype=np.uint32), *rng.normal(size=x)][0], seed=3
    )
    modest = MapDataset.range(10).random_map(
        lambda x, rng: rng.integers(0, 9, dtype=np.uint32), seed=3
    )
    assert elements(greedy) == elements(modest)


def test_random_maps_may_be_nested() -> None:
    """A transform that itself asks a random dataset disturbs neither."""
    inner = MapDataset.range(5).random_map(add_random, seed=1)
    outer = inner.random_map(lambda x, rng: (rng.random(), inner[0], rng.random()), seed=2)
    plain = inner.random_map(lambda x, rng: (rng.random(), 0, rng.random()), seed=2)
    assert [(a, c) for a, _, c in elements(outer)] == [(a, c) for a, _, c in elements(plain)]


def test_a_generator_is_used_again_after_an_exception() -> None:
    def fail(x: int, rng: np.random.Generator) -> float:
        value = rng.random()
        if x == 1:
            raise KeyError("x")
        return value

    dataset = MapDataset.range(3).random_map(fail, seed=1)
    first = dataset[0]
    with pytest.raises(KeyError):
        dataset[1]
    assert dataset[0] == first


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_shuffles_refuse_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed must be at (least|most) \d+, got {seed}"):
        MapDataset.range(3).shuffle(seed=seed)
    with pytest.raises(ValueError, match=r"shuffle needs a seed: pass seed=\.\.\., or call"):
        MapDataset.range(3).shuffle()


def test_seed_refuses_what_is_no_seed() -> None:
    with pytest.raises(ValueError, match="seed must be at least 0, got -3"):
        MapDataset.range(3).seed(-3)
    with pytest.raises(TypeError, match="seed must be a whole number, got 'x'"):
        MapDataset.range(3).seed("x")  # type: ignore[arg-type]


def test_seed_leaves_elements_and_epochs_as_they_are() -> None:
    dataset = MapDataset.range(4).shuffle(seed=1)
    assert elements(dataset.seed(5), -4, 8) == elements(dataset, -4, 8)
    assert len(dataset.seed(5)) == 4


def test_seeds_of_the_documents_examples() -> None:
    """Each stage has its own; one that is given wins; a later call wins; branches are joined."""
    base = MapDataset.range(100)
    one = base.seed(3).shuffle()
    assert elements(one) != elements(base.shuffle(seed=3))
    own = base.seed(3).random_map(add_random, seed=7)
    assert elements(own) == elements(base.random_map(add_random, seed=7))
    late = base.seed(1).shuffle().seed(2)
    other = base.seed(9).shuffle().seed(2)
    assert late.random_map(add_random)._default_seed == other.random_map(add_random)._default_seed
    left, right = base.seed(1).shuffle(), base.seed(2).shuffle()
    mixed = MapDataset.mix([left, right]).map(lambda x: x)
    assert mixed._default_seed not in (None, left.map(abs).map(abs)._default_seed)
    assert mixed._default_seed != MapDataset.mix([left, left]).map(abs)._default_seed


def test_two_positions_in_a_pipeline_have_different_seeds() -> None:
    """Positions at one distance have the same one, as in Grain."""
    base = MapDataset.range(100).seed(3)
    assert elements(base.shuffle()) != elements(base.map(lambda x: x).shuffle())
    assert base.map(abs).shuffle()._default_seed == base.shuffle().shuffle()._default_seed


# repeat, slice, concatenate, mix


def test_repeat_only_changes_the_length() -> None:
    dataset = MapDataset.range(5).shuffle(seed=1)
    assert elements(dataset.repeat(3)) == elements(dataset, 0, 15)
    endless = MapDataset.range(5).repeat()
    assert (len(endless), endless[11111]) == (sys.maxsize, 1)
    assert len(MapDataset.range(0).repeat()) == 0


def test_repeat_may_leave_each_epoch_as_the_first() -> None:
    dataset = MapDataset.range(5).seed(1).shuffle().random_map(add_random)
    again = dataset.repeat(2, reseed_each_epoch=False)
    assert elements(again) == elements(dataset) * 2
    assert elements(dataset.repeat(2)) != elements(dataset) * 2


def test_repeat_refuses_what_has_no_end_or_no_epochs() -> None:
    endless = MapDataset.range(5).repeat()
    for epochs in (None, 2):
        with pytest.raises(ValueError, match="infinite"):
            endless.repeat(epochs)
    with pytest.raises(ValueError, match="num_epochs must be at least 1, got 0"):
        MapDataset.range(5).repeat(0)


@pytest.mark.parametrize("start", [None, -7, -2, 0, 2, 9])
@pytest.mark.parametrize("stop", [None, -7, -2, 0, 2, 9])
@pytest.mark.parametrize("step", [None, -2, 1, 3])
def test_slices_are_those_of_lists(start: Any, stop: Any, step: Any) -> None:
    """By the method, by brackets, by index and by iteration."""
    dataset, sl = MapDataset.range(6).map(lambda x: x * x), slice(start, stop, step)
    expected = [x * x for x in range(6)][sl]
    assert list(dataset[sl]) == list(dataset.slice(sl)) == elements(dataset[sl]) == expected
    assert len(dataset[sl]) == len(expected)


def test_epochs_of_a_slice_are_those_of_its_parent() -> None:
    dataset = MapDataset.range(10).shuffle(seed=1)
    assert elements(dataset[0:2], 2, 4) == [dataset[10], dataset[11]]
    assert elements(dataset[1::3], -3, 0) == [dataset[-9], dataset[-6], dataset[-3]]


def test_slices_of_what_is_infinite() -> None:
    endless = MapDataset.range(5).repeat()
    assert elements(endless[7:10]) == [2, 3, 4]
    assert len(endless[1::2]) == (sys.maxsize) // 2
    assert endless[1::2][10**15] == (2 * 10**15 + 1) % 5


def test_slice_refuses_what_is_none() -> None:
    with pytest.raises(ValueError, match="sl must be a slice, got 3"):
        MapDataset.range(5).slice(3)  # type: ignore[arg-type]


def test_concatenate_goes_through_the_epochs_of_its_parts() -> None:
    first, second = MapDataset.range(3).shuffle(seed=1), MapDataset.range(3, 8).shuffle(seed=2)
    both = MapDataset.concatenate([first, MapDataset.range(0), second])
    assert list(both) == elements(first) + elements(second)
    for epoch in (-1, 1, 2):
        of_parts = elements(first, 3 * epoch, 3 * epoch + 3)
        of_parts += elements(second, 5 * epoch, 5 * epoch + 5)
        assert elements(both, 8 * epoch, 8 * epoch + 8) == of_parts
    assert len(MapDataset.concatenate([])) == 0
    with pytest.raises(ValueError, match=r"datasets\[1\] is infinite"):
        MapDataset.concatenate([first, second.repeat()])


def test_mix_goes_on_with_its_inputs_past_its_end() -> None:
    mixed = MapDataset.mix([MapDataset.range(0, 6, 2), MapDataset.range(1, 12)])
    assert len(mixed) == 6
    assert elements(mixed, 0, 12) == [0, 1, 2, 2, 4, 3, 0, 4, 2, 5, 4, 6]


def test_mix_of_what_is_infinite_is_infinite() -> None:
    endless = MapDataset.range(5).repeat()
    assert len(MapDataset.mix([endless, endless], [1, 3])) == sys.maxsize
    assert len(MapDataset.mix([endless, MapDataset.range(5)])) == 10


def test_mix_refuses_what_cannot_be_mixed() -> None:
    five, none = MapDataset.range(5), MapDataset.range(0)
    for datasets, weights, message in (
        ([five, none], None, r"datasets\[1\] is empty"),
        ([], None, "datasets is empty"),
        ([five, five], [1, 0], r"weights\[1\] must be above 0"),
        ([five, five], [1, -1], r"weights\[1\] must be above 0"),
        ([five, five], [1], r"weights=\[1\] are 1, and there are 2 datasets"),
    ):
        with pytest.raises(ValueError, match=message):
            MapDataset.mix(datasets, weights)
    with pytest.raises(TypeError, match=r"datasets\[1\] must be a MapDataset, got \[1\]"):
        MapDataset.mix([five, [1]])  # type: ignore[list-item]


class Backwards:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[int, int]:
        return index % 2, -1 - index


def test_select_from_datasets_asks_for_the_index_as_it_is() -> None:
    """Past the end and below zero as well."""
    asked: list[int] = []

    class Map(Backwards):
        def __getitem__(self, index: int) -> tuple[int, int]:
            asked.append(index)
            return super().__getitem__(index)

    low, high = MapDataset.range(5), MapDataset.range(10, 15)
    chosen = MapDataset.select_from_datasets([low, high], Map())
    assert (len(chosen), elements(chosen)) == (4, [4, 13, 2, 11])
    assert elements(chosen.repeat(2), 4) == [0, 14, 3, 12]
    assert chosen[-1] == 10
    assert asked == [0, 1, 2, 3, 4, 5, 6, 7, -1]


def test_select_from_datasets_names_what_is_not_there() -> None:
    class Wrong(Backwards):
        def __getitem__(self, index: int) -> tuple[int, int]:
            return 2, 0

    five = MapDataset.range(5)
    with pytest.raises(IndexError, match=r"selection_map\[1\] is \(2, 0\), and there are 2"):
        MapDataset.select_from_datasets([five, five], Wrong())[1]
    with pytest.raises(TypeError, match="selection_map=3 has no __len__"):
        MapDataset.select_from_datasets([five], 3)  # type: ignore[arg-type]


def test_an_error_says_where_it_comes_from() -> None:
    """The stage, the index, and which of several datasets."""

    def fail(x: int) -> int:
        raise RuntimeError("no")

    bad = MapDataset.range(3).map(fail)
    for joined in (
        MapDataset.mix([MapDataset.range(3), bad]),
        MapDataset.concatenate([MapDataset.range(1), bad]),
    ):
        with pytest.raises(RuntimeError) as caught:
            joined[1]
        inner, outer = caught.value.__notes__
        assert inner.startswith("in map(")
        assert inner.endswith("fail) at index 0")
        assert outer.startswith("in datasets[1] of ")


# the class itself


class Squares(MapDataset[int]):
    """A dataset as users write them."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        return (index % self.length) ** 2


class Shifted(MapDataset[int]):
    """A stage as users write them, in which random numbers may be wanted."""

    def __init__(self, parent: MapDataset[int]) -> None:
        super().__init__(parent)
        self.seed_of_it = self._default_seed

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: Any) -> Any:
        return self.slice(index) if isinstance(index, slice) else self._parent[index] + 1


def test_own_datasets_are_sources_and_stages() -> None:
    dataset = Shifted(Squares(5).seed(1).shuffle())
    assert sorted(dataset) == [1, 2, 5, 10, 17]
    assert list(dataset[1:3].map(lambda x: -x)) == [-dataset[1], -dataset[2]]
    assert [batch.tolist() for batch in dataset.batch(3)] == [
        elements(dataset, 0, 3),
        elements(dataset, 3),
    ]
    assert dataset.seed_of_it == Squares(5).seed(1).map(abs).map(abs)._default_seed
    assert dataset.parents[0].parents[0].parents[0].length == 5  # type: ignore[attr-defined]
    assert len(dataset.repeat(2).map(abs)) == 10


def test_an_own_dataset_may_be_asked_by_a_coroutine_function() -> None:
    class Remote(Squares):
        async def __getitem__(self, index: int) -> int:  # type: ignore[override]
            await asyncio.sleep(0)
            return index**2

    assert Remote(5).map(lambda x: x + 1).batch(2)[1].tolist() == [5, 10]


def test_factories_are_there_on_subclasses_and_not_on_instances() -> None:
    assert list(Squares.range(3)) == [0, 1, 2]
    assert list(MapDataset[int].source([1])) == [1]
    assert not hasattr(MapDataset.range(3), "range")


def test_a_dataset_without_its_methods_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        MapDataset()  # type: ignore[abstract]
    with pytest.raises(TypeError, match=r"parents\[0\] must be a dataset, got 3"):
        Shifted([3])  # type: ignore[arg-type]


def test_parents_are_a_tuple() -> None:
    one, two = MapDataset.range(3), MapDataset.range(4)
    assert MapDataset.concatenate([one, two]).parents == (one, two)
    assert one.map(abs).parents == (one,)
    assert one.parents == ()


def test_pipe_calls_a_function_with_the_dataset_first() -> None:
    """Positional only, so that an argument may be called ``func``."""

    def stage(dataset: MapDataset[int], factor: int, *, func: str) -> tuple[Any, ...]:
        return list(dataset), factor, func

    assert MapDataset.range(2).pipe(stage, 3, func="x") == ([0, 1], 3, "x")


def test_stages_leave_their_parents_as_they_are() -> None:
    """A dataset can be the beginning of any number of others, which know nothing of each other."""
    base = MapDataset.range(10).seed(1)
    before = vars(base).copy()
    first = [batch.tolist() for batch in base.shuffle().batch(3)]
    base.map(abs).filter(bool).repeat(2)
    base.seed(9).shuffle().batch(2, drop_remainder=True).to_iter_dataset()
    assert vars(base) == before
    assert [batch.tolist() for batch in base.shuffle().batch(3)] == first


def test_pipelines_travel_by_cloudpickle() -> None:
    """With all stages, their places and their random numbers; small, whatever was read before."""
    parts = [MapDataset.range(1000).seed(s).shuffle() for s in (1, 2)]
    dataset = (
        MapDataset.concatenate([MapDataset.mix(parts), MapDataset.source(range(50))])
        .random_map(add_random, seed=5)
        .map_with_index(lambda i, x: i + x)[3:1000:2]
        .repeat(2)
        .batch(4)
    )
    expected = [dataset[i].tolist() for i in range(5)]
    travelled = cloudpickle.dumps(dataset)
    assert len(travelled) < 8000
    assert [cloudpickle.loads(travelled)[i].tolist() for i in range(5)] == expected


def test_it_shows_what_it_is() -> None:
    both = MapDataset.concatenate([MapDataset.range(3), Squares(2)])
    dataset = both.seed(1).shuffle(seed=2)[1::2].map(Double()).repeat(3).batch(2)
    assert repr(dataset) == (
        "MapDataset.concatenate([range(3), <Squares>]).seed(1).shuffle(seed=2)"
        ".slice(slice(1, None, 2)).map(Double()).repeat(3).batch(2)"
    )


def test_iterators_are_fresh_and_end_after_an_epoch() -> None:
    dataset = MapDataset.range(3)
    one, two = iter(dataset), iter(dataset)
    assert [next(one), next(one), next(two), next(one)] == [0, 1, 0, 2]
    assert next(one, "end") == "end"
    assert list(two) == [1, 2]


async def test_it_is_iterated_by_async_for_too() -> None:
    dataset = MapDataset.range(10).shuffle(seed=1).filter(lambda x: x % 3).map(lambda x: -x)
    assert [x async for x in dataset] == list(dataset)
