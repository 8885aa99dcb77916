"""Turns: the least-used group first, from any turn on, however many batches there are."""

from __future__ import annotations

from fractions import Fraction
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioloader._order.turns import Turns

small = st.lists(st.integers(1, 12), min_size=1, max_size=6).map(tuple)
large = st.lists(st.integers(1, 10**12), min_size=1, max_size=12).map(tuple)


def simulate(counts: tuple[int, ...], interleave: bool) -> list[tuple[int, int]]:
    """Play the rule out: the smallest fraction used goes next, ties to the earliest."""
    used = [0] * len(counts)
    turns = []
    for _ in range(sum(counts)):
        left = [group for group, count in enumerate(counts) if used[group] < count]
        shares = {group: Fraction(used[group], counts[group]) for group in left}
        group = min(left, key=lambda group: (shares[group], group)) if interleave else left[0]
        turns.append((group, used[group]))
        used[group] += 1
    return turns


@settings(deadline=None)
@given(small, st.booleans())
def test_turns_are_those_of_a_simulation(counts: tuple[int, ...], interleave: bool) -> None:
    """The whole sequence, and each turn by random access."""
    turns, expected = Turns(counts, interleave), simulate(counts, interleave)
    assert list(turns.sequence()) == expected
    assert [turns.at(turn) for turn in range(turns.total)] == expected


@settings(deadline=None)
@given(st.data(), small, st.booleans())
def test_the_sequence_can_begin_anywhere(
    data: st.DataObject, counts: tuple[int, ...], interleave: bool
) -> None:
    """From any turn on it is the rest of the whole, which at the end is nothing."""
    turns = Turns(counts, interleave)
    start = data.draw(st.integers(0, turns.total))
    assert list(turns.sequence(start)) == simulate(counts, interleave)[start:]


@settings(deadline=None)
@given(st.data(), large)
def test_use_is_exact_after_any_number_of_turns(
    data: st.DataObject, counts: tuple[int, ...]
) -> None:
    """Everything taken comes before everything left, also among 1e12 batches."""
    turns = Turns(counts)
    taken = data.draw(st.integers(0, turns.total))
    used = turns.used(taken)
    assert sum(used) == taken
    shares = list(enumerate(zip(used, counts, strict=True)))
    last = [(Fraction(u - 1, c), g) for g, (u, c) in shares if u]
    following = [(Fraction(u, c), g) for g, (u, c) in shares if u < c]
    assert not last or not following or max(last) < min(following)


@settings(deadline=None)
@given(small)
def test_groups_never_drift_apart_by_more_than_a_share(counts: tuple[int, ...]) -> None:
    """At any time, no group is more than one of its batches ahead of another."""
    used = [0] * len(counts)
    for group, _ in Turns(counts).sequence():
        used[group] += 1
        behind = min(Fraction(u, c) for u, c in zip(used, counts, strict=True))
        assert all(Fraction(u - 1, c) <= behind for u, c in zip(used, counts, strict=True))


def test_equal_groups_alternate() -> None:
    """What one expects to see of interleaving."""
    assert [group for group, _ in Turns((3, 3, 3)).sequence()] == [0, 1, 2] * 3


def test_without_interleaving_groups_follow_one_another() -> None:
    """A group begins when the one before has ended."""
    turns = Turns((2, 1, 2), interleave=False)
    assert list(turns.sequence()) == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    assert [turns.used(turn) for turn in (0, 2, 4)] == [[0, 0, 0], [2, 0, 0], [2, 1, 1]]


@pytest.mark.parametrize("interleave", [True, False])
def test_a_late_turn_among_many_groups_is_found_at_once(interleave: bool) -> None:
    """A turn among 1e20 is found without playing out those before it."""
    turns = Turns(tuple(10**18 + group for group in range(100)), interleave)
    late = list(islice(turns.sequence(turns.total - 3), 5))
    assert late == [turns.at(turns.total - back) for back in (3, 2, 1)]
    assert turns.used(turns.total) == list(turns.counts)
