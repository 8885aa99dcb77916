"""What Grain has beside its methods: combining, repeating, flattening, shuffling windows."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from golden import EXTRAS
from walking import check_walks, walk

from aioloader import IterDataset, MapDataset, ReadOptions
from aioloader._datasets.extras import (
    FlatMapIterDataset,
    InterleaveIterDataset,
    LimitIterDataset,
    RepeatIterDataset,
    UnbatchIterDataset,
    WindowShuffleIterDataset,
    ZipIterDataset,
)
from aioloader._datasets.transforms import FlatMap

THREADS = ReadOptions(num_threads=2, prefetch_buffer_size=4)


def numbers(*bounds: int) -> IterDataset[int]:
    return MapDataset.range(*bounds).to_iter_dataset()


def failing(stop: int, *where: int) -> IterDataset[int]:
    """Return whole numbers, but for some that are errors."""

    def check(x: int) -> int:
        if x in where:
            raise ValueError(f"no {x}")
        return x

    return numbers(stop).map(check)


@pytest.mark.parametrize("case", EXTRAS["window"], ids=str)
def test_windows_are_shuffled_as_in_grain(case: dict[str, Any]) -> None:
    """Also the last one, which is smaller, and past the largest seed."""
    shuffled = numbers(case["n"]).pipe(
        WindowShuffleIterDataset, window_size=case["window_size"], seed=case["seed"]
    )
    assert list(shuffled) == case["expected"]


def test_each_walk_through_windows_is_the_same() -> None:
    """With the parent's errors in it, too, which come once and lose nothing."""
    shuffled = failing(11, 2, 3, 9).pipe(WindowShuffleIterDataset, window_size=4, seed=1)
    seen = check_walks(shuffled)
    assert sorted(x for x in seen if isinstance(x, int)) == [0, 1, 4, 5, 6, 7, 8, 10]
    assert [x[1] for x in seen if isinstance(x, tuple)] == ["no 2", "no 3", "no 9"]


def test_windows_take_their_seed_from_above() -> None:
    """Another seed is another order; without any there is an error that says what to do."""
    orders = [
        list(numbers(64).seed(seed).pipe(WindowShuffleIterDataset, window_size=32))
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0][:32]) == list(range(32))
    with pytest.raises(ValueError, match="needs a seed"):
        numbers(4).pipe(WindowShuffleIterDataset, window_size=2)
    with pytest.raises(ValueError, match="window_size must be at least 1, got 0"):
        numbers(4).pipe(WindowShuffleIterDataset, window_size=0, seed=0)


def test_each_walk_through_a_zip_is_the_same() -> None:
    """An error stands for its tuple: what comes behind it belongs together."""
    letters = MapDataset.source("abcdef").to_iter_dataset(THREADS)
    seen = check_walks(ZipIterDataset([failing(6, 1, 4), letters, failing(6, 4)]))
    assert seen[1] == ("ValueError", "no 1")
    assert seen[4] == ("ValueError", "no 4")
    assert [x[1:] for x in seen if isinstance(x, list)] == [
        [k, letter, k] for k, letter in enumerate("abcdef") if k not in (1, 4)
    ]


def test_a_strict_zip_says_which_dataset_is_shorter() -> None:
    """Whether that is an earlier or a later one; it is asked for by default."""
    for lengths, text in {
        (2, 3): r"\[0\] of zip is shorter.*\[1\]",
        (3, 2): r"\[1\].*\[0\]",
    }.items():
        zipped = ZipIterDataset([numbers(n) for n in lengths])
        with pytest.raises(ValueError, match=text):
            list(zipped)
        assert len(list(ZipIterDataset([numbers(n) for n in lengths], strict=False))) == 2
    with pytest.raises(ValueError, match="nothing to zip"):
        ZipIterDataset([])
    with pytest.raises(TypeError, match="parents must be an IterDataset"):
        ZipIterDataset([MapDataset.range(2)])  # type: ignore[list-item]


def test_a_zip_that_has_ended_has_ended() -> None:
    """Whatever the longer dataset would have had, an error or not."""
    zipped = ZipIterDataset([failing(9, 3), numbers(2)], strict=False)
    assert len(check_walks(zipped)) == 2


def test_a_dataset_is_repeated() -> None:
    """From every position, also at the seam, and with errors that come in each epoch."""
    assert check_walks(numbers(3).pipe(RepeatIterDataset, 3)) == [0, 1, 2] * 3
    seen = check_walks(failing(3, 1).pipe(RepeatIterDataset, 2))
    assert seen == [0, ("ValueError", "no 1"), 2] * 2
    assert walk(iter(numbers(3).pipe(RepeatIterDataset)), 10) == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(ValueError, match="num_epochs must be at least 1, got 0"):
        numbers(3).pipe(RepeatIterDataset, 0)


def test_an_empty_dataset_is_not_repeated_for_ever() -> None:
    """Nor one that a filter leaves nothing of."""
    assert list(numbers(0).pipe(RepeatIterDataset)) == []
    assert list(numbers(5).filter(lambda x: False).pipe(RepeatIterDataset)) == []


def test_a_dataset_is_limited() -> None:
    """An error counts as an element; more than there is is no error."""
    assert check_walks(failing(9, 1).pipe(LimitIterDataset, 3)) == [0, ("ValueError", "no 1"), 2]
    assert list(numbers(3).pipe(LimitIterDataset, 5)) == [0, 1, 2]
    endless = numbers(3).pipe(RepeatIterDataset).pipe(LimitIterDataset, 7)
    assert check_walks(endless) == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        numbers(3).pipe(LimitIterDataset, 0)


class Copies(FlatMap):
    """Each number as often as it says, by a generator."""

    max_fan_out = 100

    def flat_map(self, element: int) -> Any:
        return (element * 10 + k for k in range(element % 4))


async def copies_later(element: int) -> list[int]:
    await asyncio.sleep(0)
    return [element * 10 + k for k in range(element % 4)]


@pytest.mark.parametrize("transform", [Copies(), copies_later], ids=["instance", "coroutine"])
def test_many_elements_are_made_of_one(transform: Any) -> None:
    """By a function of either kind; some make none, and some fail."""
    seen = check_walks(failing(9, 3, 6).pipe(FlatMapIterDataset, transform))
    good = [x * 10 + k for x in range(9) for k in range(x % 4) if x not in (3, 6)]
    assert [x for x in seen if isinstance(x, int)] == good
    assert [x[1] for x in seen if isinstance(x, tuple)] == ["no 3", "no 6"]


def test_flat_map_says_where_it_failed() -> None:
    """At which element, and in which function."""

    def divide(x: int) -> list[float]:
        return [1 / x]

    iterator = iter(numbers(-1, 2).pipe(FlatMapIterDataset, divide))
    assert walk(iterator, 1) == [-1.0]
    with pytest.raises(ZeroDivisionError) as caught:
        next(iterator)
    assert "divide" in caught.value.__notes__[0]
    assert "at index 1" in caught.value.__notes__[0]
    assert list(iterator) == [1.0]


def test_absent_elements_stay_absent() -> None:
    """None comes through a flat map as it does through a map."""
    sparse = MapDataset.range(4).filter(lambda x: x % 2).to_iter_dataset(allow_nones=True)
    assert list(sparse.pipe(FlatMapIterDataset, lambda x: [x, x])) == [None, 1, 1, None, 3, 3]


def test_batches_are_taken_apart() -> None:
    """Whatever pytree they are; the rows are views."""
    source = [{"x": np.arange(3) + k, "y": (k, None)} for k in range(7)]
    dataset = MapDataset.source(source).to_iter_dataset()
    rows = dataset.batch(3).pipe(UnbatchIterDataset)
    assert len(check_walks(rows)) == 7
    for row, expected in zip(rows, source, strict=True):
        assert row["x"].tolist() == expected["x"].tolist()
        assert row["x"].base is not None
        assert row["y"] == expected["y"]


def test_what_is_no_batch_is_named() -> None:
    """Its leaf, or both lengths."""
    uneven = MapDataset.source([{"a": np.zeros(2), "b": np.zeros(3)}, {"a": 1, "b": np.zeros(3)}])
    iterator = iter(uneven.to_iter_dataset().pipe(UnbatchIterDataset))
    with pytest.raises(ValueError, match=r"different first axes: \['a'\]: 2, \['b'\]: 3"):
        next(iterator)
    with pytest.raises(ValueError, match=r"leaf \['a'\] of a batch is no array"):
        next(iterator)


def test_they_can_be_piled_up() -> None:
    """Each keeps its position inside of the others'."""
    parts = [
        numbers(7).map(lambda x: x + 100).pipe(RepeatIterDataset, 2),
        MapDataset.range(30).shuffle(3).to_iter_dataset(THREADS).pipe(LimitIterDataset, 9),
        numbers(12).pipe(FlatMapIterDataset, lambda x: range(x % 3)),
    ]
    piled = (
        InterleaveIterDataset(parts, cycle_length=2)
        .pipe(WindowShuffleIterDataset, window_size=5, seed=4)
        .batch(4)
        .pipe(UnbatchIterDataset)
    )
    assert len(check_walks(piled, is_uniform=False)) == 14 + 9 + 12
