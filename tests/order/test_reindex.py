"""Other orders: slices, concatenations, mixtures, repetitions and batches, exact at any size."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from golden import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from aioloader._order.positions import as_array
from aioloader._order.reindex import (
    ENDLESS,
    Batches,
    Concatenation,
    Mixture,
    Same,
    Slice,
    Wrapped,
    as_shares,
    repeated_length,
)

SMALL = st.integers(-50, 50)
LARGE = st.integers(-(2**62), 2**62)
RANGES = st.builds(
    lambda start, count, step: range(start, start + count * step, step),
    SMALL | LARGE,
    st.integers(0, 30),
    st.sampled_from([1, 2, 5, -1, -3]),
)
INDICES = st.lists(SMALL | LARGE, max_size=10).map(lambda x: np.array(x, dtype=np.int64)) | RANGES
LENGTHS = st.integers(1, 40) | st.sampled_from([2**33, 2**53 + 1, 2**61])


def plain(indices: Any) -> list[int]:
    return [int(index) for index in indices]


def check(order: Any, indices: Any) -> None:
    """Many at once are one by one, as an array and as Python's integers."""
    expected = [order.at(index) for index in plain(indices)]
    for form in (indices, np.array(plain(indices), dtype=object)):
        taken = order.take(form)
        if isinstance(taken, tuple):
            taken = zip(*(plain(column) for column in taken), strict=True)
            assert list(taken) == expected
        else:
            assert plain(taken) == expected


@settings(deadline=None)
@given(length=LENGTHS, bounds=st.tuples(*[st.none() | SMALL | LARGE] * 2), data=st.data())
def test_slices_are_pythons(length: int, bounds: Any, data: st.DataObject) -> None:
    """Within the first epoch; from epoch to epoch they go on with the parent's."""
    step = data.draw(st.none() | st.integers(-7, 7).filter(bool))
    sl = slice(*bounds, step)
    order, expected = Slice.of(sl, length), range(length)[sl]
    assert len(order) == len(expected)
    if len(order):
        for index in data.draw(st.lists(SMALL | LARGE, max_size=10)):
            epoch, position = divmod(index, len(order))
            assert order.at(index) == expected[position] + epoch * length
        check(order, data.draw(INDICES))


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 5) | LENGTHS, max_size=3), indices=INDICES)
def test_concatenations_are_epochs_of_their_parts(lengths: list[int], indices: Any) -> None:
    """Each epoch has the same epoch of each part, from its beginning to its end."""
    order, total = Concatenation.of(lengths), sum(lengths)
    assert len(order) == total
    if total:
        check(order, indices)
        for index in plain(indices):
            part, place = order.at(index)
            epoch, position = divmod(index, total)
            assert place // lengths[part] == epoch
            assert sum(lengths[:part]) + place % lengths[part] == position


@pytest.mark.parametrize("case", GOLDEN["mix"], ids=lambda case: str(case["lengths"]))
def test_mixtures_are_grains(case: dict[str, Any]) -> None:
    """In order and in length, as recorded."""
    mixture = Mixture(as_shares(case["weights"], len(case["lengths"])))
    assert mixture.length(case["lengths"]) == case["len"]
    found = [mixture.at(index) for index in range(len(case["map"]))]
    assert [1000 * part + place for part, place in found] == case["map"]


@settings(deadline=None)
@given(
    shares=st.lists(st.integers(1, 6) | st.integers(1, 10**7), min_size=1, max_size=5),
    indices=INDICES,
)
def test_mixtures_have_exact_proportions(shares: list[int], indices: Any) -> None:
    """After any number of elements each part has its share, to less than one for each part."""
    mixture, total = Mixture(tuple(shares)), sum(shares)
    check(mixture, indices)
    for index in plain(indices):
        part, place = mixture.at(index)
        assert abs(place * total - index * shares[part]) <= len(shares) * total


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_mixtures_leave_nothing_out(shares: list[int]) -> None:
    """Each part is drawn from in its order, without gaps, and not beyond its length."""
    mixture, lengths = Mixture(tuple(shares)), [5 + share for share in shares]
    seen: dict[int, list[int]] = {part: [] for part in range(len(shares))}
    for index in range(mixture.length(lengths)):
        part, place = mixture.at(index)
        seen[part].append(place)
    assert all(places == list(range(len(places))) for places in seen.values())
    assert all(len(places) <= lengths[part] for part, places in seen.items())


def test_lengths_of_mixtures_are_exact() -> None:
    """Where floating point would lose an element, and where it cannot count any more."""
    assert Mixture(as_shares([0.5, 0.9], 2)).length([31, 9]) == 14
    assert Mixture((1, 1)).length([2**60 + 1, 2**61]) == 2**61 + 2
    assert Mixture((1, 2)).length([ENDLESS, ENDLESS]) == ENDLESS


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 0], r"weights\[1\] must be above 0 and finite, got 0"),
        ([-0.5, 1], r"weights\[0\] must be above 0 and finite, got -0.5"),
        ([1, float("nan")], r"weights\[1\] must be above 0 and finite, got nan"),
        ([1, float("inf")], r"weights\[1\] must be above 0 and finite, got inf"),
        ([1, 1, 1], r"weights=\[1, 1, 1\] are 3, and there are 2 datasets"),
    ],
)
def test_weights_that_are_none_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_shares(weights, 2)


def test_infinite_parts_cannot_be_concatenated() -> None:
    """The position of the first that is infinite is named; so is a sum that is too large."""
    with pytest.raises(ValueError, match=r"datasets\[1\] is infinite"):
        Concatenation.of([3, ENDLESS])
    with pytest.raises(ValueError, match="which is too many"):
        Concatenation.of([ENDLESS - 1, ENDLESS - 1])


@given(st.integers(0, 10**6) | LENGTHS, st.none() | st.integers(1, 2**40))
def test_repetitions_have_a_length_that_python_can_say(length: int, epochs: int | None) -> None:
    """None that is larger than `sys.maxsize`, which stands for infinity."""
    repeated = repeated_length(length, epochs)
    assert repeated == (min(length * epochs, sys.maxsize) if epochs else sys.maxsize * bool(length))


@pytest.mark.parametrize("epochs", [0, -1])
def test_repetitions_need_an_epoch(epochs: int) -> None:
    with pytest.raises(ValueError, match=f"num_epochs must be at least 1, got {epochs}"):
        repeated_length(5, epochs)


@pytest.mark.parametrize("epochs", [None, 2])
def test_what_is_infinite_cannot_be_repeated(epochs: int | None) -> None:
    with pytest.raises(ValueError, match="infinite"):
        repeated_length(repeated_length(5, None), epochs)


@given(LENGTHS, INDICES)
def test_epochs_may_be_all_the_same(length: int, indices: Any) -> None:
    """Or left as they are."""
    check(Wrapped(length), indices)
    check(Same(), indices)
    assert all(Wrapped(length).at(i) == i % length for i in plain(indices))


@given(LENGTHS, st.integers(1, 50), st.booleans(), st.integers(-3, 3))
def test_batches_cut_each_epoch_up(length: int, size: int, drop: bool, epoch: int) -> None:
    """Whole ones, and what is left of an epoch unless it is dropped; exactly, at any length."""
    batches = Batches(length, size, drop)
    count = length // size if drop else -(-length // size)
    assert len(batches) == count
    if count:
        last = batches.at(epoch * count + count - 1)
        assert last.start == epoch * length + (count - 1) * size
        assert last.stop == min(last.start + size, (epoch + 1) * length)


@pytest.mark.parametrize("size", [0, -3])
def test_batches_have_elements(size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {size}"):
        Batches(10, size, False)


@pytest.mark.parametrize(
    "order", [Slice.of(slice(0, 0), 5), Concatenation.of([]), Wrapped(0), Batches(3, 4, True)]
)
def test_empty_orders_say_so(order: Any) -> None:
    with pytest.raises(ZeroDivisionError, match="the dataset is empty, so it has no element 7"):
        order.at(7)


def test_ranges_too_large_for_numpy_stay_exact() -> None:
    """They become Python's integers."""
    array = as_array(range(2**63, 2**63 + 2))
    assert array.tolist() == [2**63, 2**63 + 1]
