"""DatasetIterator: positions, and both kinds of iteration of one object."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import LENGTH, OPTIONS, STAGES, pipeline
from support import both_loops, run_on

from aioloader import IterDataset, MapDataset, ReadOptions, StateError


def shape_of(state: Any) -> Any:
    """Return what of a state must not change: its keys, its types, and how many parts it has."""
    if isinstance(state, dict):
        return {key: shape_of(value) for key, value in state.items()}
    if isinstance(state, list):
        return [shape_of(value) for value in state]
    return type(state)


@settings(max_examples=30, deadline=None)
@given(
    stages=st.lists(st.sampled_from(list(STAGES)), max_size=4),
    is_async=st.booleans(),
    stops=st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.sampled_from(OPTIONS))),
)
def test_pieces_joined_are_the_whole(
    stages: list[str], is_async: bool, stops: list[tuple[int, bool, ReadOptions]]
) -> None:
    """Saved and restored at random points, in both kinds of iteration, under any options."""
    whole = list(pipeline(stages, OPTIONS[0], is_async=is_async))
    pieces, state, shapes = [], None, []

    def begin(options: ReadOptions) -> Any:
        iterator = iter(pipeline(stages, options, is_async=is_async))
        if state is not None:
            iterator.set_state(json.loads(json.dumps(state)))
        shapes.append(shape_of(iterator.get_state()))
        return iterator

    async def take(iterator: Any, count: int) -> None:
        async for element in iterator:
            pieces.append(element)
            if (count := count - 1) == 0:
                break

    for count, on_loop, options in stops:
        iterator = begin(options)
        if on_loop and count:
            asyncio.run(take(iterator, count))
        else:
            pieces += [x for _, x in zip(range(count), iterator, strict=False)]
        state = iterator.get_state()
        shapes.append(shape_of(state))
        iterator.close()
    pieces += list(begin(OPTIONS[-1]))
    assert pieces == whole
    assert all(shape == shapes[0] for shape in shapes)


@both_loops
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("stages", [[], ["map", "batch"], ["async map", "filter"]])
def test_one_object_is_iterated_over_in_both_ways_in_turn(
    loop: str, is_async: bool, stages: list[str]
) -> None:
    """And on several loops: nothing is lost, nothing comes twice."""
    whole = list(pipeline(stages, OPTIONS[0], is_async=is_async))
    iterator = iter(pipeline(stages, OPTIONS[2], is_async=is_async))
    seen: list[Any] = []

    async def some(count: int) -> None:
        for _ in range(count):
            seen.append(await anext(iterator))

    run_on(loop, some(2))
    seen += [next(iterator), next(iterator)]
    run_on(loop, some(1))

    async def rest() -> None:
        seen.extend([element async for element in iterator])

    run_on(loop, rest())
    assert seen == whole
    assert list(iterator) == []


def test_iterators_of_one_dataset_are_independent() -> None:
    """Each begins at the beginning."""
    dataset = pipeline(["map"], OPTIONS[2])
    one, other = iter(dataset), iter(dataset)
    first = [next(one) for _ in range(5)]
    assert [next(other) for _ in range(5)] == first
    assert len(list(one)) == LENGTH - 5


def test_states_are_small_and_known_to_be_those_of_grain() -> None:
    """Their parts are where programs that read them look."""
    numbers = MapDataset.range(9).to_iter_dataset()
    iterator = iter(numbers.map(abs).filter(bool).batch(2))
    next(iterator)
    assert iterator.get_state() == {"next_index": 3}
    drawn = iter(numbers.random_map(lambda x, rng: x, seed=1).map_with_index(lambda i, x: x))
    next(drawn)
    parent = {"parent": {"next_index": 1}, "index_for_rng": 1}
    assert drawn.get_state() == {"parent": parent, "counter": 1}
    mixed = iter(IterDataset.mix([numbers, numbers]))
    next(mixed)
    parts = [{"next_index": 1}, {"next_index": 0}]
    assert mixed.get_state() == {"parents": parts, "index": 1, "stop": False}


@pytest.mark.parametrize("position", [-1, 10])
def test_a_position_that_does_not_exist_is_refused(position: int) -> None:
    """And the end is a position."""
    iterator = iter(MapDataset.range(9).to_iter_dataset())
    with pytest.raises(IndexError, match="9"):
        iterator.set_state({"next_index": position})
    iterator.set_state({"next_index": 9})
    assert list(iterator) == []


@pytest.mark.parametrize("state", [{}, {"parent": {"next_index": 1}}, {"next_index": "1"}])
def test_a_state_of_another_pipeline_is_refused(state: dict[str, Any]) -> None:
    """As a StateError that shows it."""
    dataset = MapDataset.range(9).to_iter_dataset().map_with_index(lambda i, x: x)
    with pytest.raises(StateError, match="another pipeline"):
        iter(dataset).set_state(state)
    with pytest.raises(StateError, match="another pipeline"):
        iter(MapDataset.range(9).to_iter_dataset()).set_state(state)


def test_a_state_may_be_set_after_the_end() -> None:
    """Again and again."""
    iterator = iter(pipeline([], OPTIONS[3]))
    state = iterator.get_state()
    whole = list(iterator)
    for _ in range(2):
        iterator.set_state(state)
        assert list(iterator) == whole
