"""Progress: which positions have been passed, whatever order they were passed in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aioloader._engine.progress import Progress

starts = st.integers(0, 10**12)
offsets = st.lists(st.integers(-5, 80), max_size=60)


@given(starts, offsets)
def test_it_says_what_a_set_of_all_positions_would_say(start: int, passed: list[int]) -> None:
    progress, seen = Progress(start), set[int]()
    for offset in passed:
        progress.passed(start + offset)
        seen.add(start + offset)
        lowest = start
        while lowest in seen:
            lowest += 1
        assert progress.position == lowest
        for position in range(start - 6, start + 90):
            assert progress.is_passed(position) == (position in seen or position < start)


@given(starts, offsets)
def test_two_numbers_say_all_of_it(start: int, passed: list[int]) -> None:
    """What was saved and what goes on from there cannot be told apart."""
    progress = Progress(start)
    for number, offset in enumerate(passed):
        progress.passed(start + offset)
        again = Progress(progress.position, progress.ahead)
        assert (again.position, again.ahead) == (progress.position, progress.ahead)
        for later in passed[number:]:
            assert again.is_passed(start + later) == progress.is_passed(start + later)


@given(starts, st.permutations(range(40)))
def test_when_all_have_been_passed_nothing_is_remembered(start: int, order: list[int]) -> None:
    progress = Progress(start)
    for offset in order:
        progress.passed(start + offset)
    assert (progress.position, progress.ahead) == (start + 40, 0)


@given(starts, st.integers(1, 12), st.lists(st.integers(0, 11), max_size=200))
def test_it_is_no_larger_than_what_is_under_way(start: int, depth: int, picks: list[int]) -> None:
    """The bitmap reaches no further than the depth of the loader."""
    progress, under_way, following = Progress(start), list(range(start, start + depth)), depth
    for pick in picks:
        progress.passed(under_way.pop(pick % len(under_way)))
        under_way.append(start + following)
        following += 1
        lowest = min(under_way)
        assert progress.position == lowest
        assert progress.ahead.bit_length() <= start + following - lowest


def test_in_order_it_is_one_number() -> None:
    progress = Progress(7)
    for position in range(7, 1000):
        progress.passed(position)
        assert (progress.position, progress.ahead) == (position + 1, 0)
    progress.passed(500)
    assert (progress.position, progress.ahead) == (1000, 0)


def test_a_state_that_has_passed_its_own_position_is_put_right() -> None:
    assert (Progress(10, 0b0111).position, Progress(10, 0b0111).ahead) == (13, 0)
    assert (Progress(10, 0b1011).position, Progress(10, 0b1011).ahead) == (12, 0b10)
