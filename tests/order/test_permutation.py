"""Permutations of any length: correct, uniform, stable, and O(1)."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioloader._order import permutation as permutation_module
from aioloader._order.permutation import LONGEST, Permutation, derive_key

if TYPE_CHECKING:
    from collections.abc import Iterable

AROUND_POWERS_OF_TWO = [
    power + offset for power in (1 << 12, 1 << 16, 1 << 18) for offset in (-1, 0, 1, 2)
]
HUGE = [10**9, 10**9 + 7, (1 << 40) + 1, 10**18, (1 << 60) + 1, LONGEST - 1, LONGEST]

parts = st.lists(st.one_of(st.integers(), st.text(max_size=4)), max_size=4)


@pytest.fixture
def without_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send short ranges, too, through the arithmetic that is meant for long ones."""
    monkeypatch.setattr(permutation_module, "_TABLE_LENGTH", 0)


def everything(length: int, key: int) -> np.ndarray:
    return Permutation(length, key).take(0, length)


def is_permutation(places: np.ndarray) -> bool:
    return bool((np.sort(places) == np.arange(len(places))).all())


def assert_uniform(counts: Iterable[int], cells: int) -> None:
    """Fail where Pearson's chi-square is six standard deviations above its mean."""
    seen = np.asarray(list(counts), dtype=float)
    expected = seen.sum() / cells
    chi_square = ((seen - expected) ** 2).sum() / expected + (cells - len(seen)) * expected
    degrees = cells - 1
    assert chi_square < degrees + 6 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("key", [0, 1, (1 << 63) - 1])
def test_every_short_length_is_permuted(key: int) -> None:
    """A table reaches each position of each length from 1 to 600 exactly once."""
    assert all(is_permutation(everything(length, key)) for length in range(1, 601))


@pytest.mark.usefixtures("without_table")
def test_every_short_length_is_permuted_by_the_network() -> None:
    """So does the network, whatever sizes its halves have."""
    assert all(is_permutation(everything(length, 3)) for length in range(1, 601))


@pytest.mark.parametrize("length", AROUND_POWERS_OF_TWO)
def test_lengths_around_powers_of_two_are_permuted(length: int) -> None:
    """No position is lost or met twice where the number of bits changes."""
    assert is_permutation(everything(length, key=11))


@settings(deadline=None, max_examples=40)
@given(st.integers(4000, 60_000), st.integers(-(1 << 70), 1 << 70))
def test_any_length_and_key_permutes(length: int, key: int) -> None:
    """There is no unlucky pair of a length and a key."""
    assert is_permutation(everything(length, key))


@pytest.mark.parametrize("length", HUGE)
def test_huge_ranges_are_permuted_as_far_as_one_can_see(length: int) -> None:
    """Samples from both ends and the middle stay in range and never meet."""
    permutation = Permutation(length, key=5)
    starts = (0, length // 3, length - 20_000)
    places = np.concatenate([permutation.take(start, start + 20_000) for start in starts])
    assert len(np.unique(places)) == len(places)
    assert 0 <= places.min() < length // 1000
    assert length - length // 1000 < places.max() < length


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from([1, 7, 600, 4096, 4097, 65_537, *HUGE]))
def test_every_way_to_ask_gives_the_same_answer(data: st.DataObject, length: int) -> None:
    """A slice, scattered positions and single ones agree."""
    permutation = Permutation(length, key=2)
    start = data.draw(st.integers(0, length - 1))
    stop = min(length, start + data.draw(st.integers(1, 50)))
    places = permutation.take(start, stop)
    assert places.dtype == np.int64
    assert permutation.at(range(start, stop)).tolist() == places.tolist()
    assert permutation[start] == places[0]
    assert permutation[stop - 1 - length] == places[-1]


def test_long_requests_are_answered_in_their_own_shape() -> None:
    """Chunks, into which a request is cut, leave no seams."""
    permutation = Permutation(10**9, key=2)
    wanted = np.arange(60_000).reshape(3, 20_000)
    answer = permutation.at(wanted)
    assert answer.shape == wanted.shape
    assert answer[2, 17] == permutation[int(wanted[2, 17])]


def test_answers_belong_to_whoever_asked() -> None:
    """Writing into an answer does not change the permutation."""
    permutation = Permutation(100, key=0)
    first = permutation.take(0, 100)
    kept = first.copy()
    first[:] = 0
    assert permutation.take(0, 100).tolist() == kept.tolist()


@pytest.mark.parametrize("length", [0, 10, 10**6])
def test_positions_outside_are_refused(length: int) -> None:
    """An index error, and neither a wrong answer nor an endless walk."""
    permutation = Permutation(length, key=0)
    assert len(permutation) == length
    assert permutation.take(0, 0).tolist() == []
    for outside in ([length], [-1], [1 << 62]):
        with pytest.raises(IndexError, match="positions must be in range"):
            permutation.at(outside)
    for position in (length, -length - 1):
        with pytest.raises(IndexError):
            permutation[position]


@pytest.mark.parametrize("length", [-1, LONGEST + 1])
def test_impossible_lengths_are_refused(length: int) -> None:
    """The message names the parameter and the value."""
    with pytest.raises(ValueError, match=rf"length must be at (least|most) .*, got {length}"):
        Permutation(length, key=0)
    with pytest.raises(TypeError, match=r"length must be a whole number, got 1\.5"):
        Permutation(1.5, key=0)  # type: ignore[arg-type]


def test_short_tables_are_uniform() -> None:
    """All orders of five are equally frequent over keys."""
    orders = Counter(tuple(everything(5, key).tolist()) for key in range(12_000))
    assert_uniform(orders.values(), cells=math.factorial(5))


@pytest.mark.usefixtures("without_table")
@pytest.mark.parametrize("length", [11, 100])
def test_the_network_sends_each_position_everywhere(length: int) -> None:
    """Over keys, every pair (position, place) is equally frequent, also for few positions."""
    keys = 3000
    places = np.stack([everything(length, key) for key in range(keys)])
    pairs = places + np.arange(length) * length
    counts = np.bincount(pairs.ravel(), minlength=length * length)
    assert_uniform(counts, cells=length * length)


@pytest.mark.parametrize("length", [4097, 10**5, 10**9, 10**18])
def test_neighbours_are_sent_apart_independently(length: int) -> None:
    """The places of two neighbours, each in one of 16 parts, are independent."""
    stop = min(length, 200_000)
    part = Permutation(length, key=9).take(0, stop) // -(-length // 16)
    pairs = Counter((part[:-1] * 16 + part[1:]).tolist())
    assert_uniform(pairs.values(), cells=256)


@pytest.mark.parametrize("length", [4000, 5000, 10**6])
def test_other_keys_are_other_permutations(length: int) -> None:
    """Two permutations agree about once, as two random ones do."""
    stop = min(length, 200_000)
    first, second = (Permutation(length, key).take(0, stop) for key in (1, 2))
    assert (first == second).sum() < 10
    assert (first == np.arange(stop)).sum() < 10


def test_orders_are_the_same_for_good() -> None:
    """Saved states refer to these orders: a change needs a new version of fingerprints."""
    assert Permutation(10, 1).take(0, 10).tolist() == [8, 1, 2, 3, 9, 4, 6, 0, 5, 7]
    assert Permutation(10**9, 1).take(0, 3).tolist() == [752940170, 847044789, 686936809]
    assert Permutation(10**18, 1)[10**17] == 704641164257125336
    assert repr(Permutation(10, 1)) == "Permutation(10, key=1)"


def test_keys_are_the_same_for_good() -> None:
    """A key depends on nothing but its parts."""
    assert derive_key() == 3449109577854083710
    assert derive_key("items", 0, 1) == 5273507773052178434
    assert derive_key("items", -1, 2**70) == 7910860049062935127


@settings(deadline=None)
@given(parts, parts)
def test_keys_differ_where_parts_differ(first: list[int | str], second: list[int | str]) -> None:
    """No two lists of parts run into one another, and a key has 63 bits."""
    assert (derive_key(*first) == derive_key(*second)) == (first == second)
    assert 0 <= derive_key(*first) < 1 << 63


@pytest.mark.parametrize(
    ("first", "second"),
    [(("ab", "c"), ("a", "bc")), ((1, 2), (12,)), ((255,), (-1,)), ((0,), ("\0",)), ((0,), ())],
)
def test_keys_tell_apart_what_would_concatenate_alike(
    first: tuple[int | str, ...], second: tuple[int | str, ...]
) -> None:
    """Types, signs and boundaries between parts count."""
    assert derive_key(*first) != derive_key(*second)
