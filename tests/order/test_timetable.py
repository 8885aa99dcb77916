"""The timetable: positions of training and validation batches, both ways."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from aioloader._order.timetable import Timetable

timetables = st.builds(Timetable, st.integers(1, 9), st.integers(1, 9)) | st.just(Timetable())


@settings(deadline=None)
@given(timetables)
def test_positions_are_those_of_a_simulation(timetable: Timetable) -> None:
    """Walking through the stream meets what the arithmetic says, in both directions."""
    position, validated = 0, 0
    for trained in range(40):
        assert timetable.locate(position) == (False, trained)
        assert timetable.position(False, trained) == position == timetable.after(trained)
        position += 1
        due = timetable.period is not None and (trained + 1) % timetable.period == 0
        for _ in range(timetable.run if due else 0):
            assert timetable.locate(position) == (True, validated)
            assert timetable.position(True, validated) == position
            position, validated = position + 1, validated + 1


@settings(deadline=None)
@given(st.integers(1, 10**15), st.integers(1, 10**15), st.integers(0, 10**40))
def test_locating_and_positioning_undo_each_other(period: int, run: int, position: int) -> None:
    """They do so however large the numbers are."""
    timetable = Timetable(period, run)
    assert timetable.position(*timetable.locate(position)) == position
