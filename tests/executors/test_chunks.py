"""Chunks: rows cut into pieces that are worth sending and short enough to share."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioloader._executors.chunks import BUSY_SECONDS, CHUNK_SECONDS, RowCost, cut

costs = st.none() | st.floats(0, 1e9) | st.sampled_from([0.0, 1e-9, 1e-6, 1e-4, 1.0])


@given(st.integers(1, 20_000), st.integers(1, 64), costs, st.integers(1, 5000))
def test_every_row_is_in_one_piece_and_pieces_are_in_order(
    rows: int, num_workers: int, cost: float | None, largest: int
) -> None:
    """None is empty, none larger than allowed, and they differ by one row at most."""
    pieces = cut(rows, num_workers, cost, largest)
    assert pieces[0][0] == 0
    assert pieces[-1][1] == rows
    assert all(stop == start for (_, stop), (start, _) in pairwise(pieces))
    sizes = [stop - start for start, stop in pieces]
    assert min(sizes) >= 1
    assert max(sizes) <= largest
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 4096), st.integers(1, 16))
def test_at_first_each_worker_gets_two_pieces(rows: int, num_workers: int) -> None:
    """Nothing is known of the rows yet."""
    assert len(cut(rows, num_workers, None)) == min(2 * num_workers, rows)


@given(st.integers(1, 4096), st.integers(1, 16), st.floats(1e-7, 1.0))
def test_what_is_worth_sharing_is_shared_among_all_workers(
    rows: int, num_workers: int, cost: float
) -> None:
    pieces = cut(rows, num_workers, cost)
    if rows * cost > CHUNK_SECONDS:
        assert len(pieces) >= min(num_workers, rows)


@given(st.integers(1, 4096), st.integers(1, 16))
def test_a_batch_that_costs_next_to_nothing_is_one_piece(rows: int, num_workers: int) -> None:
    """A message would cost more than the rows."""
    assert cut(rows, num_workers, 1e-9) == [(0, rows)]


def test_a_piece_lasts_about_as_long_as_it_should() -> None:
    for cost in (1e-5, 1e-4, 5e-4):
        sizes = {stop - start for start, stop in cut(4000, 2, cost)}
        assert max(sizes) * cost == pytest.approx(CHUNK_SECONDS, rel=0.3)
        sizes = {stop - start for start, stop in cut(4000, 2, cost, waiting=2)}
        assert max(sizes) * cost == pytest.approx(BUSY_SECONDS, rel=0.3)


def test_the_cost_of_a_row_follows_what_is_measured() -> None:
    """The first measurement counts in full, later ones a quarter each."""
    cost = RowCost()
    assert cost.seconds is None
    cost.add(10, 1.0)
    assert cost.seconds == pytest.approx(0.1)
    cost.add(1, 0.5)
    assert cost.seconds == pytest.approx(0.2)
    cost.add(0, 100.0)
    assert cost.seconds == pytest.approx(0.2)


@given(st.lists(st.tuples(st.integers(1, 100), st.floats(0, 10)), min_size=1))
def test_the_cost_of_a_row_stays_within_what_has_been_measured(
    measured: list[tuple[int, float]],
) -> None:
    cost = RowCost()
    for rows, seconds in measured:
        cost.add(rows, seconds)
    each = [seconds / rows for rows, seconds in measured]
    assert cost.seconds is not None
    assert min(each) * (1 - 1e-9) <= cost.seconds <= max(each) * (1 + 1e-9)
