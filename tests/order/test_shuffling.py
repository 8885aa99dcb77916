"""The shuffle: Grain's order to the bit, a permutation of every length, uniform, in any block."""

from __future__ import annotations

import math
import pickle
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from golden import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from aioloader._order.shuffling import MAX_SEED, Shuffle, WindowShuffle, derive_seed

LONG = [65537, 65538, 100_000, 131_073, 262_144, 262_145, 300_000]


def case_name(case: dict[str, Any]) -> str:
    return f"{case['n']}-{case['seed']}"


@pytest.mark.parametrize("case", GOLDEN["shuffle"], ids=case_name)
def test_the_order_is_grains(case: dict[str, Any]) -> None:
    """One by one, many at once, in the recorded epochs and at single recorded indices."""
    n, seed = case["n"], case["seed"]
    recorded = dict(zip(case.get("indices", ()), case.get("values", ()), strict=True))
    for epoch, order in enumerate(case.get("epochs", ())):
        recorded |= {epoch * n + position: place for position, place in enumerate(order)}
    # Recorded are the elements of a range, which takes positions modulo its length.
    expected = [place + index // n * n for index, place in recorded.items()]
    indices = list(recorded)
    assert [Shuffle(n, seed).at(index) for index in indices] == expected
    assert Shuffle(n, seed).take(np.array(indices)).tolist() == expected


@pytest.mark.parametrize("seed", [0, 42, MAX_SEED])
def test_every_length_up_to_2000_is_permuted(seed: int) -> None:
    """In one epoch, asked for at once."""
    for length in range(1, 2001, 1 if seed == 42 else 97):
        places = Shuffle(length, seed).take(range(length))
        assert (np.sort(places) == np.arange(length)).all(), length


@pytest.mark.parametrize("length", LONG)
@pytest.mark.parametrize("epoch", [0, 1, -1])
def test_long_lengths_are_permuted(length: int, epoch: int) -> None:
    """Also those of which the largest position is a power of four."""
    epoch_indices = range(epoch * length, (epoch + 1) * length)
    places = Shuffle(length, 5).take(epoch_indices)
    assert (np.sort(places) == np.array(epoch_indices)).all()


@pytest.mark.parametrize("length", [10**9, 2**40 + 1, 2**53 + 1, 2**62 + 1, 2**63 - 1])
def test_huge_lengths_have_distinct_positions(length: int) -> None:
    """A hundred thousand neighbours, and the ends, all go to different places inside."""
    shuffle = Shuffle(length, 7)
    begin = length // 2
    places = set(shuffle.take(range(begin, begin + 100_000)).tolist())
    places |= {shuffle.at(index) for index in (0, 1, length - 2, length - 1)}
    assert len(places) == 100_004
    assert min(places) >= 0
    assert max(places) < length


@settings(deadline=None)
@given(
    length=st.integers(1, 300) | st.sampled_from([*LONG, 10**9, 2**62 + 1, 2**63 - 1]),
    seed=st.integers(0, MAX_SEED),
    indices=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9), max_size=8),
    near=st.booleans(),
)
def test_many_at_once_is_one_by_one(length: int, seed: int, indices: list[int], near: bool) -> None:
    """For any indices, of any epochs."""
    shuffle = Shuffle(length, seed)
    if near:
        indices = [index % (3 * length) - length for index in indices]
    indices = [index for index in indices if -(2**63) <= index < 2**63]
    alone = Shuffle(length, seed)
    expected = [alone.at(index) for index in indices]
    assert shuffle.take(np.array(indices, dtype=np.int64)).tolist() == expected
    assert shuffle.take(np.array(indices, dtype=object)).tolist() == expected


@settings(deadline=None)
@given(
    length=st.sampled_from([1, 2, 7, 1000, 65537, 100_000, 10**9]),
    start=st.integers(-(10**6), 10**6),
    count=st.integers(0, 20),  # in short datasets each may be of an epoch of its own
    step=st.sampled_from([1, 2, 13, 4096, -1, -7]),
)
def test_ranges_at_once_are_one_by_one(length: int, start: int, count: int, step: int) -> None:
    """Forwards and backwards, within a block of the order and across blocks and epochs."""
    indices = range(start, start + count * step, step)
    alone, shuffle = Shuffle(length, 3), Shuffle(length, 3)
    expected = [alone.at(index) for index in indices]
    assert shuffle.take(indices).tolist() == expected
    assert shuffle.take(indices).tolist() == expected


@pytest.mark.parametrize("length", [1000, 100_000])
def test_blocks_that_are_kept_change_nothing(length: int) -> None:
    """In a walk that goes on, goes back and jumps, each answer is that of a new shuffle."""
    source, shuffle, index = random.Random(0), Shuffle(length, 9), 0
    for _ in range(3000):
        index += source.choice([1, 1, 1, 1, 1, 1, 1, -1, 200, length])
        epoch, position = divmod(index, length)
        place = Shuffle(length, 9)._cipher(epoch).one(position)
        assert shuffle.at(index) == epoch * length + place


@pytest.mark.parametrize("length", [1000, 10**6])
def test_what_is_kept_is_bounded(length: int) -> None:
    """After many epochs no more is kept than after a few."""
    shuffle = Shuffle(length, 0)
    for epoch in range(20):
        for _ in range(2):
            shuffle.take(range(epoch * length, epoch * length + 100))
    assert len(shuffle._kept) == 3


def test_what_is_handed_out_cannot_spoil_what_is_kept() -> None:
    """A run of positions is a view that cannot be written to."""
    with pytest.raises(ValueError, match="read-only"):
        Shuffle(100, 1).take(range(10))[0] = 3


def assert_uniform(counts: np.ndarray) -> None:
    """Fail where Pearson's chi-square is six standard deviations above its mean."""
    expected = counts.sum() / counts.size
    chi_square = ((counts - expected) ** 2).sum() / expected
    degrees = counts.size - 1
    assert chi_square < degrees + 6 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("length", [2, 3, 5, 10])
def test_each_position_goes_everywhere_equally_often(length: int) -> None:
    """Over the epochs of a seed, as a table of positions and places."""
    shuffle, table = Shuffle(length, 0), np.zeros((length, length))
    for epoch in range(400):
        places = shuffle.take(range(epoch * length, (epoch + 1) * length))
        table[np.arange(length), places % length] += 1
    assert_uniform(table)


@pytest.mark.parametrize("length", [3, 4])
def test_each_order_is_equally_frequent(length: int) -> None:
    """Of the few that there are."""
    shuffle = Shuffle(length, 1)
    orders = Counter(
        tuple((shuffle.take(range(epoch * length, (epoch + 1) * length)) % length).tolist())
        for epoch in range(600)
    )
    assert len(orders) == math.factorial(length)
    assert_uniform(np.array(list(orders.values())))


def test_epochs_and_seeds_differ() -> None:
    """Epoch 1 of a seed is epoch 0 of the next one, and no other; the last seed is before 0."""
    orders = {seed: Shuffle(50, seed).take(range(50)).tolist() for seed in (0, 1, 2, MAX_SEED)}
    assert len(set(map(tuple, orders.values()))) == 4
    assert (Shuffle(50, 0).take(range(50, 100)) - 50).tolist() == orders[1]
    assert (Shuffle(50, 1).take(range(-50, 0)) + 50).tolist() == orders[0]
    assert (Shuffle(50, MAX_SEED).take(range(50, 100)) - 50).tolist() == orders[0]


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    """By name, with the value."""
    with pytest.raises(ValueError, match=rf"seed must be at (least|most) \d+, got {seed}"):
        Shuffle(10, seed)
    with pytest.raises(ValueError, match=rf"seed must be at (least|most) \d+, got {seed}"):
        WindowShuffle(10, 3, seed)


def test_nothing_that_is_kept_travels() -> None:
    """A pickle is as small as the values that it stands for."""
    shuffle = Shuffle(1000, 3)
    shuffle.at(5)
    copy = pickle.loads(pickle.dumps(shuffle))
    assert copy == shuffle
    assert not copy._kept
    assert copy.at(5) == shuffle.at(5)


def test_an_empty_dataset_has_no_elements() -> None:
    """It says so."""
    with pytest.raises(ZeroDivisionError, match="the dataset is empty, so it has no element 0"):
        Shuffle(0, 1).at(0)


@pytest.mark.parametrize(("length", "window"), [(20, 8), (16, 8), (5, 100), (7, 1), (1, 3)])
def test_windows_are_permuted_on_their_own(length: int, window: int) -> None:
    """Each by a seed of its own, also over epochs; the last of an epoch has what is left."""
    shuffle = WindowShuffle(length, window, 3)
    for epoch in (-1, 0, 1):
        offset = epoch * length
        places = [shuffle.at(offset + position) - offset for position in range(length)]
        for start in range(0, length, window):
            stop = min(start + window, length)
            assert sorted(places[start:stop]) == list(range(start, stop))
            number = epoch * -(-length // window) + start // window
            own = Shuffle(stop - start, (3 + number) % 2**32).take(range(stop - start))
            assert places[start:stop] == (own + start).tolist()
        assert shuffle.take(range(offset, offset + length)).tolist() == [
            offset + place for place in places
        ]


def test_windows_are_grains() -> None:
    """The recorded order of ``range(16)`` in windows of eight with the seed 3."""
    shuffle = WindowShuffle(16, 8, 3)
    assert [shuffle.at(index) for index in range(16)] == [
        *(4, 7, 0, 1, 2, 5, 3, 6),
        *(14, 8, 12, 11, 10, 9, 13, 15),
    ]


def test_derived_seeds_are_grains() -> None:
    """As recorded; no seed gives none."""
    assert derive_seed([(42, 1)]) == 3329053876
    assert derive_seed([(42, 2)]) == 955475868
    assert derive_seed([(3, 2), (3, 2)]) == 3478436182
    assert derive_seed([]) is None
