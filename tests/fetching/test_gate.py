"""The gate: so many at once, in turn, whoever is cancelled; or as many as the store sustains."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import both_loops, run_on

from aioloader._fetching.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtual import Virtually


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@both_loops
def test_first_come_first_served(loop: str) -> None:
    entered: list[int] = []

    async def one(gate: Gate, number: int) -> None:
        await gate.enter()
        entered.append(number)

    async def main() -> None:
        gate = Gate(2, adaptive=False)
        tasks = [asyncio.ensure_future(one(gate, number)) for number in range(6)]
        await turns(3)
        assert entered == [0, 1]
        gate.leave()
        late = asyncio.ensure_future(one(gate, 9))
        await turns(3)
        assert entered == [0, 1, 2]
        for _ in range(5):
            gate.leave()
            await turns(2)
        await asyncio.gather(*tasks, late)
        assert entered == [0, 1, 2, 3, 4, 5, 9]
        assert gate.in_flight == 1

    run_on(loop, main())


@both_loops
def test_a_turn_that_comes_in_the_moment_of_a_cancellation_is_passed_on(loop: str) -> None:
    """In either order: first the turn, or first the cancellation."""

    async def main() -> None:
        for cancelled_first in (False, True):
            gate = Gate(1, adaptive=False)
            await gate.enter()
            first, second = (asyncio.ensure_future(gate.enter()) for _ in range(2))
            await turns(2)
            if cancelled_first:
                first.cancel()
                gate.leave()
            else:
                gate.leave()
                first.cancel()
            await asyncio.wait([first, second])
            assert first.cancelled()
            assert second.exception() is None
            assert gate.in_flight == 1

    run_on(loop, main())


@settings(max_examples=60, deadline=None)
@given(
    most=st.integers(1, 4),
    steps=st.lists(st.tuples(st.sampled_from("ecl."), st.integers(0, 30)), max_size=40),
)
def test_whatever_happens_no_room_is_lost(most: int, steps: list[tuple[str, int]]) -> None:
    """Tasks enter, are cancelled, and leave, in any order and in the same turn of the loop."""

    async def main() -> None:
        gate = Gate(most, adaptive=False)
        tasks: list[asyncio.Task[None]] = []
        inside = 0

        def leave_one() -> None:
            nonlocal inside
            if inside:
                inside -= 1
                gate.leave()

        async def one() -> None:
            nonlocal inside
            await gate.enter()
            inside += 1

        for step, number in steps:
            if step == "e":
                tasks.append(asyncio.ensure_future(one()))
            elif step == "c" and tasks:
                tasks[number % len(tasks)].cancel()
            elif step == "l":
                leave_one()
            else:
                await turns(2)
            assert gate.in_flight <= most
        while not all(task.done() for task in tasks):
            leave_one()
            await turns(2)
        assert all(task.cancelled() or task.exception() is None for task in tasks)
        assert gate.in_flight == inside

    asyncio.run(main())


def limits_of(
    virtually: Virtually, most: int, latency: Callable[[int], float], looks: int, asking: int = 512
) -> tuple[Gate, list[int]]:
    """Keep a gate busy, and note its limit with each answer."""
    gate = Gate(most, adaptive=True)
    limits: list[int] = []

    async def ask() -> None:
        while len(limits) < looks:
            await gate.enter()
            seconds = latency(gate.in_flight)
            await asyncio.sleep(seconds)
            gate.succeeded(seconds)
            gate.leave()
            limits.append(gate.limit)

    async def main() -> None:
        await asyncio.gather(*(ask() for _ in range(asking)))

    virtually.run(main)
    return gate, limits


def test_a_store_that_sustains_all_gets_all_soon(virtually: Any) -> None:
    """The limit doubles while latencies stay as they are."""
    random.seed(1)
    jitter = lambda inside: 0.02 * random.lognormvariate(0, 0.3)  # noqa: E731
    _, limits = limits_of(virtually, 256, jitter, 3000)
    assert limits[0] == 16
    assert limits.index(256) < 1000
    assert max(limits) == 256


@pytest.mark.parametrize("knee", [8, 50])
def test_the_limit_settles_near_what_the_store_sustains(virtually: Any, knee: int) -> None:
    """Beyond the knee each request makes all others wait: not less than it, and not much more."""
    random.seed(2)

    def latency(inside: int) -> float:
        return 0.02 * max(inside / knee, 1.0) * random.lognormvariate(0, 0.2)

    _, limits = limits_of(virtually, 512, latency, 12_000)
    settled = limits[6_000:]
    assert sorted(settled)[len(settled) // 2] <= 2 * knee + 8
    assert sum(limit >= 0.75 * knee for limit in settled) > 0.9 * len(settled)


def test_the_limit_follows_a_store_that_changes(virtually: Any) -> None:
    """Up and down; what was best long ago is forgotten."""
    knee = [64]

    def latency(inside: int) -> float:
        return (0.02 if knee[0] == 64 else 0.06) * max(inside / knee[0], 1.0)

    answers = 0

    def changing(inside: int) -> float:
        nonlocal answers
        answers += 1
        knee[0] = 64 if answers < 5_000 or answers > 12_000 else 16
        return latency(inside)

    _, limits = limits_of(virtually, 256, changing, 22_000)
    assert 48 <= limits[4_900] <= 140
    assert 12 <= limits[11_900] <= 40
    assert 48 <= limits[-1] <= 140


def test_a_refusal_cuts_the_limit_once_a_look() -> None:
    gate = Gate(100, adaptive=True)
    gate._limit = 50.0
    gate.throttled()
    gate.throttled()
    assert gate.limit == 35
    fixed = Gate(100, adaptive=False)
    fixed.throttled()
    assert fixed.limit == 100


def test_a_limit_that_is_not_used_does_not_grow(virtually: Any) -> None:
    _, limits = limits_of(virtually, 256, lambda inside: 0.02, 2000, asking=4)
    assert set(limits) == {16}
