"""The watch: a worker is late when it has been at one thing for as long as the limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aioloader._executors.watch import Watch

IDLE = None


def test_a_worker_that_stays_at_one_row_is_late_after_the_limit() -> None:
    watch = Watch(2.0)
    assert watch.overdue(100.0, [(7, 3, 1)]) == []
    assert watch.overdue(101.9, [(7, 3, 1)]) == []
    assert watch.overdue(102.0, [(7, 3, 1)]) == [0]
    assert watch.overdue(109.0, [(7, 3, 1)]) == [0]


def test_anything_that_moves_is_progress() -> None:
    """Another chunk, another row, or the same row once more."""
    watch = Watch(1.0)
    for step, reading in enumerate([(7, 3, 1), (7, 4, 1), (7, 4, 2), (8, 4, 2), (8, -1, 2)]):
        assert watch.overdue(10.0 + 0.9 * step, [reading]) == []


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """As when the whole program is stopped, with its workers, and goes on much later."""
    watch = Watch(1.0, longest_step=0.4)
    assert watch.overdue(0.0, [(7, 3, 1)]) == []
    assert watch.overdue(3600.0, [(7, 3, 1)]) == []
    assert watch.overdue(3600.4, [(7, 3, 1)]) == []
    assert watch.overdue(3600.8, [(7, 3, 1)]) == [0]


def test_an_idle_worker_is_never_late() -> None:
    watch = Watch(1.0)
    assert watch.overdue(0.0, [IDLE]) == []
    assert watch.overdue(1e6, [IDLE]) == []


def test_time_spent_idle_does_not_count() -> None:
    """A worker may come back to the numbers that it had before."""
    watch = Watch(1.0)
    watch.overdue(0.0, [(7, 3, 1)])
    watch.overdue(0.75, [IDLE])
    assert watch.overdue(1.5, [(7, 3, 1)]) == []
    assert watch.overdue(2.25, [(7, 3, 1)]) == []
    assert watch.overdue(2.5, [(7, 3, 1)]) == [0]


def test_each_worker_is_watched_for_itself() -> None:
    watch = Watch(1.0)
    watch.overdue(0.0, [(1, 0, 0), (2, 0, 0), IDLE])
    assert watch.overdue(1.0, [(1, 0, 0), (2, 1, 1), (3, 0, 0)]) == [0]
    assert watch.overdue(2.0, [(1, 0, 0), (2, 1, 1), (3, 0, 0)]) == [0, 1, 2]


def test_a_watch_that_forgets_begins_anew() -> None:
    """Other workers are at the places of those that were late."""
    watch = Watch(1.0)
    watch.overdue(0.0, [(1, 0, 0)])
    watch.forget()
    assert watch.overdue(5.0, [(1, 0, 0)]) == []
    assert watch.overdue(6.0, [(1, 0, 0)]) == [0]


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans())))
def test_late_means_unchanged_and_busy_since_the_limit(
    steps: list[tuple[int, bool, bool]],
) -> None:
    """Against a plain account of when the reading last changed."""
    watch, now, since, beat = Watch(10.0), 0, 0, 0
    last: tuple[int, int, int] | None = None
    for seconds, moves, idle in steps:
        now += seconds
        beat += moves
        reading = None if idle else (4, 0, beat)
        if reading != last or idle:
            since = now
        last = reading
        assert watch.overdue(float(now), [reading]) == ([0] if now - since >= 10 else [])
