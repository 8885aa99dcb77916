"""Statistics: sums, shares, and the verdict on what limits the rate."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioloader._engine.statistics import Meter, verdict


class Clock:
    """A clock that is put forward by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_a_new_meter_has_measured_nothing() -> None:
    meter = Meter()
    assert (meter.delivered, meter.rows, meter.bytes, meter.retries) == (0, 0, 0, 0)
    assert (meter.elapsed_seconds, meter.idle_share, meter.take_idle_usec()) == (0.0, 0.0, 0)


def test_the_clock_starts_with_the_first_batch(clock: Clock) -> None:
    """The start of workers and of JAX says nothing about the rate."""
    meter = Meter()
    meter.waited(30.0)
    clock.now += 30
    assert meter.elapsed_seconds == 0
    meter.deliver(8, 100)
    assert (meter.rows, meter.rows_after_first) == (8, 0)
    clock.now += 10
    meter.waited(4.0)
    meter.deliver(6, 50)
    assert (meter.delivered, meter.rows, meter.rows_after_first, meter.bytes) == (2, 14, 6, 150)
    assert meter.elapsed_seconds == pytest.approx(10)
    assert meter.idle_share == pytest.approx(0.4)
    assert meter.wait_seconds == pytest.approx(34)


def test_idle_time_is_told_once(clock: Clock) -> None:
    meter = Meter()
    meter.waited(0.5)
    meter.waited(0.25)
    assert meter.take_idle_usec() == 750_000
    assert meter.take_idle_usec() == 0
    meter.waited(1e-5)
    assert meter.take_idle_usec() == 10


def test_the_idle_share_is_a_share(clock: Clock) -> None:
    """Whatever is measured by whichever clock."""
    meter = Meter()
    meter.deliver(1, 1)
    clock.now += 1
    meter.waited(50.0)
    assert meter.idle_share == 1.0


@pytest.mark.parametrize(
    ("fetch", "load", "place", "expected"),
    [
        (5.0, 3.0, 0.0, "fetch"),
        (3.0, 5.0, 0.0, "load"),
        (0.0, 1.0, 2.0, "place"),
        (0.0, 0.0, 0.0, "load"),
        (0.0, 4.0, 4.0, "load"),
    ],
)
def test_a_consumer_that_waits_is_limited_by_the_stage_that_takes_longest(
    fetch: float, load: float, place: float, expected: str
) -> None:
    assert verdict(0.8, fetch, load, place) == expected


@given(st.floats(0, 0.049), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_consumer_that_hardly_waits_is_itself_the_limit(
    idle: float, fetch: float, load: float, place: float
) -> None:
    assert verdict(idle, fetch, load, place) == "consumer"


@given(st.floats(0.05, 1), st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_the_verdict_names_a_stage_that_nothing_exceeds(
    idle: float, fetch: float, load: float, place: float
) -> None:
    spans: dict[str, float] = {"fetch": fetch, "load": load, "place": place}
    assert spans[verdict(idle, fetch, load, place)] == max(spans.values())
