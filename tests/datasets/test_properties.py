"""Any pipeline is the same however it is read, and wherever it is stopped and taken up again.

`PROPERTY_EXAMPLES` is the number of pipelines for each property; few of them run by default.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from walking import outcome_of, plain, walk, walk_async

from aioloader import (
    FlatMapIterDataset,
    FlatMapMapDataset,
    InterleaveIterDataset,
    IterDataset,
    LimitIterDataset,
    MapDataset,
    MultiprocessingOptions,
    ReadOptions,
    RepeatIterDataset,
    UnbatchIterDataset,
    WindowShuffleIterDataset,
    WindowShuffleMapDataset,
    ZipIterDataset,
    ZipMapDataset,
)

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "0"))
OPTIONS = [ReadOptions(0, 0), ReadOptions(1, 1), ReadOptions(2, 5), ReadOptions(3, 100)]
LENGTHS = [11, 17, 8, 14, 5, 3, 1, 0]
LONGEST = 48


def examples(few: int) -> settings:
    return settings(
        max_examples=EXAMPLES or few,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


# Functions of a program: for numbers, and for whatever has numbers in it.


def changed(element: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(element, dict):
        return {key: changed(value, change) for key, value in element.items()}
    if isinstance(element, tuple):
        return tuple(changed(value, change) for value in element)
    is_text = isinstance(element, str) or getattr(element, "dtype", np.dtype(int)).kind == "U"
    return element if is_text else change(element)


def number_in(element: Any) -> int:
    if isinstance(element, dict):
        return sum(map(number_in, element.values()))
    if isinstance(element, tuple):
        return sum(map(number_in, element))
    is_text = isinstance(element, str) or getattr(element, "dtype", np.dtype(int)).kind == "U"
    return len(element) if is_text else int(np.sum(element))


def is_kept(element: Any) -> bool:
    return number_in(element) % 3 != 1


def failing(element: Any) -> Any:
    if number_in(element) % 7 == 3:
        raise ValueError(f"no {number_in(element)}")
    return element


def copies(element: Any) -> list[Any]:
    return [element] * (number_in(element) % 3)


async def later(element: Any) -> Any:
    await asyncio.sleep(0)
    return changed(element, lambda x: x + 1)


async def kept_later(element: Any) -> bool:
    await asyncio.sleep(0)
    return is_kept(element)


async def drawn_later(element: Any, rng: np.random.Generator) -> Any:
    added = int(rng.integers(50))
    await asyncio.sleep(0)
    return changed(element, lambda x: x + added + int(rng.integers(50)))


def drawn(element: Any, rng: np.random.Generator) -> Any:
    return changed(element, lambda x: x + int(rng.integers(100)))


def indexed(index: int, element: Any) -> Any:
    return changed(element, lambda x: x + 10 * index)


def in_a_tree(element: Any) -> Any:
    return {"x": element, "text": f"t{number_in(element) % 5}"}


def other(k: int) -> MapDataset[int]:
    return MapDataset.range(100, 105 + 3 * k)


# Stages: each with a small number to go by.

EITHER: dict[str, Callable[[Any, int], Any]] = {
    "map": lambda ds, k: ds.map(lambda x: changed(x, lambda v: v * 2 + k)),
    "map to a tree": lambda ds, k: ds.map(in_a_tree),
    "map that fails": lambda ds, k: ds.map(failing),
    "map_with_index": lambda ds, k: ds.map_with_index(indexed),
    "random_map": lambda ds, k: ds.random_map(drawn),
    "filter": lambda ds, k: ds.filter(is_kept),
    "seed": lambda ds, k: ds.seed(k),
    "async map": lambda ds, k: ds.map(later),
    "async filter": lambda ds, k: ds.filter(kept_later),
    "async random_map": lambda ds, k: ds.random_map(drawn_later, seed=k),
}
BY_INDEX = EITHER | {
    "shuffle": lambda ds, k: ds.shuffle(),
    "slice": lambda ds, k: ds[k : None if k % 2 else -k : 1 + k % 3],
    "reverse": lambda ds, k: ds[::-1],
    "repeat": lambda ds, k: ds.repeat(1 + k % 3) if len(ds) <= LONGEST // 3 else ds,
    "batch": lambda ds, k: ds if ds._is_sparse else ds.batch(1 + k, drop_remainder=k % 2 == 1),
    "concatenate": lambda ds, k: MapDataset.concatenate([ds, other(k)]),
    "mix": lambda ds, k: MapDataset.mix([ds, other(k)], [1, 1 + k]) if len(ds) else ds,
    "zip": lambda ds, k: ds[:5].pipe(lambda part: ZipMapDataset([part, other(k)[: len(part)]])),
    "window shuffle": lambda ds, k: ds.pipe(WindowShuffleMapDataset, window_size=1 + k),
    "flat_map": lambda ds, k: ds.pipe(FlatMapMapDataset, copies, max_fan_out=3)[:LONGEST],
}
BY_ITERATION = EITHER | {
    "batch": lambda ds, k: ds.batch(1 + k, drop_remainder=k % 2 == 1),
    "unbatch": lambda ds, k: ds.batch(1 + k).pipe(UnbatchIterDataset),
    "mix": lambda ds, k: IterDataset.mix([ds, other(k).to_iter_dataset()], [1 + k, 1]),
    "zip": lambda ds, k: ZipIterDataset([ds, other(k).to_iter_dataset()], strict=False),
    "interleave": lambda ds, k: InterleaveIterDataset([other(k), ds, other(1)], cycle_length=2),
    "window shuffle": lambda ds, k: ds.pipe(WindowShuffleIterDataset, window_size=1 + k),
    "flat_map": lambda ds, k: ds.pipe(FlatMapIterDataset, copies),
    "repeat": lambda ds, k: ds.pipe(LimitIterDataset, LONGEST).pipe(RepeatIterDataset, 1 + k % 2),
    "limit": lambda ds, k: ds.pipe(LimitIterDataset, 1 + 3 * k),
}
SOURCES: list[Callable[[int], Any]] = [
    MapDataset.range,
    lambda n: MapDataset.source(list(range(n))),
    lambda n: MapDataset.source(np.arange(3 * n).reshape(n, 3)),
]


def stages(kinds: dict[str, Any]) -> st.SearchStrategy[tuple[str, int]]:
    return st.tuples(st.sampled_from(sorted(kinds)), st.integers(0, 4))


@st.composite
def pipelines(draw: st.DrawFn) -> Any:
    """Return a source and up to six stages: by index, and then by iteration."""
    source = draw(st.integers(0, len(SOURCES) - 1)), draw(st.sampled_from(LENGTHS))
    count = draw(st.integers(1, 6))
    first = draw(st.integers(0, count))
    before = [draw(stages(BY_INDEX)) for _ in range(first)]
    after = [draw(stages(BY_ITERATION)) for _ in range(count - first)]
    return source, before, after


def by_index(pipeline: Any) -> MapDataset[Any]:
    (kind, length), before, _ = pipeline
    dataset = SOURCES[kind](length).seed(7)
    for name, number in before:
        dataset = BY_INDEX[name](dataset, number)
    return dataset  # type: ignore[no-any-return]


def by_iteration(pipeline: Any, options: ReadOptions, workers: int = 0, at: int = 6) -> Any:
    """Return the whole, with workers before the stage ``at``, or behind all."""
    dataset: Any = by_index(pipeline).to_iter_dataset(options)
    after = pipeline[2]
    manning = MultiprocessingOptions(num_workers=workers)
    for position, (name, number) in enumerate(after):
        if position == at:
            dataset = dataset.mp_prefetch(manning)
        dataset = BY_ITERATION[name](dataset, number)
    return dataset.mp_prefetch(manning) if at >= len(after) else dataset


def indexed_outcomes(dataset: MapDataset[Any]) -> list[Any]:
    """Return what there is by index, but for what is absent."""
    seen = []
    for index in range(len(dataset)):
        try:
            element = dataset[index]
        except Exception as error:
            seen.append(outcome_of(error))
        else:
            seen += [] if element is None else [plain(element)]
    return seen


def walked(dataset: Any, is_async: bool, count: int | None, state: Any) -> tuple[list[Any], str]:
    """Walk on from a state; returns what there was, and the next state."""

    async def main() -> tuple[list[Any], str]:
        async with aiter(dataset) as iterator:
            if state is not None:
                iterator.set_state(json.loads(state))
            seen = await walk_async(iterator, count)
            return seen, json.dumps(iterator.get_state())

    if is_async:
        return asyncio.run(main())
    with iter(dataset) as iterator:
        if state is not None:
            iterator.set_state(json.loads(state))
        seen = walk(iterator, count)
        return seen, json.dumps(iterator.get_state())


def check_pieces(pipeline: Any, whole: list[Any], pieces: Any) -> None:
    """Check that pieces, each read in a way of its own, make the whole; the last has the rest."""
    joined: list[Any] = []
    state = None
    for position, (count, option, workers, at, is_async) in enumerate(pieces, 1):
        dataset = by_iteration(pipeline, OPTIONS[option], workers, at)
        last = position == len(pieces)
        seen, state = walked(dataset, is_async, None if last else count, state)
        joined += seen
        assert len(json.dumps(state)) < 4096
    assert joined == whole


def piece(most_workers: int) -> Any:
    """Return how many elements, by which options, how many workers and where, and which loop."""
    workers = st.integers(0, most_workers)
    option = st.integers(0, len(OPTIONS) - 1)
    return st.tuples(st.integers(0, 9), option, workers, st.integers(0, 6), st.booleans())


@examples(200)
@given(pipelines(), st.sampled_from(OPTIONS))
def test_elements_are_the_same_by_index_and_by_iteration(pipeline: Any, option: Any) -> None:
    """With `for` and `async for`, whatever the options."""
    dataset = by_index(pipeline)
    note(repr(dataset))
    expected = indexed_outcomes(dataset)
    assert walk(iter(dataset)) == expected
    for is_async in (False, True):
        assert walked(dataset.to_iter_dataset(option), is_async, None, None)[0] == expected


@examples(200)
@given(pipelines(), st.lists(piece(0), min_size=1, max_size=5))
def test_pieces_make_the_whole(pipeline: Any, pieces: Any) -> None:
    """With other options and another kind of loop for each piece."""
    dataset = by_iteration(pipeline, OPTIONS[0])
    note(repr(dataset))
    whole = walked(dataset, False, None, None)[0]
    assert walked(dataset, True, None, None)[0] == whole
    check_pieces(pipeline, whole, pieces)


@examples(6)
@given(pipelines(), st.lists(piece(3), min_size=2, max_size=3))
def test_pieces_make_the_whole_with_any_number_of_workers(pipeline: Any, pieces: Any) -> None:
    """Which is another one for each piece, at another place in the pipeline."""
    dataset = by_iteration(pipeline, OPTIONS[0])
    note(repr(dataset))
    whole = walked(dataset, False, None, None)[0]
    check_pieces(pipeline, whole, pieces)


@examples(3)
@given(pipelines())
def test_elements_are_the_same_with_any_number_of_workers(pipeline: Any) -> None:
    """From none to three, behind the whole pipeline."""
    whole = walked(by_iteration(pipeline, OPTIONS[0]), False, None, None)[0]
    for workers in range(4):
        dataset = by_iteration(pipeline, OPTIONS[2], workers)
        note(repr(dataset))
        assert walked(dataset, workers % 2 == 0, None, None)[0] == whole
