"""The budget: what was saved, what successes earn, and a trickle; in turn, whoever is cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aioloader._fetching.budget import Budget


@given(
    burst=st.integers(1, 20),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    steps=st.text("te", max_size=80),
)
def test_no_more_is_taken_than_was_saved_and_earned(burst: int, share: float, steps: str) -> None:
    budget = Budget(burst=burst, share=share, per_second=0.0)
    taken = earned = 0
    for step in steps:
        if step == "e":
            budget.earn()
            earned += 1
        else:
            taken += budget.take()
    assert taken <= burst + share * earned + 1e-9
    assert taken >= min(steps.count("t"), burst)


def test_those_who_wait_are_served_in_turn_and_at_the_rate(virtually: Any) -> None:
    served: list[tuple[int, float]] = []

    async def main() -> None:
        budget = Budget(burst=2, share=0.5, per_second=10.0)

        async def one(number: int) -> None:
            await budget.wait()
            served.append((number, round(virtually.now, 2)))

        await asyncio.gather(*(one(number) for number in range(6)))
        assert budget.waiting == 0

    virtually.run(main)
    assert served == [(0, 0), (1, 0), (2, 0.1), (3, 0.2), (4, 0.3), (5, 0.4)]


def test_successes_serve_those_who_wait_at_once(virtually: Any) -> None:
    async def main() -> None:
        budget = Budget(burst=1, share=0.5, per_second=0.0)
        assert budget.take()
        waiting = asyncio.ensure_future(budget.wait())
        await asyncio.sleep(5)
        budget.earn()
        await asyncio.sleep(5)
        assert not waiting.done()
        assert not budget.take()
        budget.earn()
        await waiting

    virtually.run(main)


def test_a_token_given_in_the_moment_of_a_cancellation_is_not_lost(virtually: Any) -> None:
    async def main() -> None:
        for cancelled_first in (False, True):
            budget = Budget(burst=1, share=1.0, per_second=0.0)
            assert budget.take()
            first, second = (asyncio.ensure_future(budget.wait()) for _ in range(2))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if cancelled_first:
                first.cancel()
                budget.earn()
            else:
                budget.earn()
                first.cancel()
            await asyncio.wait([first, second])
            assert first.cancelled()
            assert second.exception() is None
            assert not budget.take()

    virtually.run(main)


def test_nothing_is_left_on_the_loop_when_nobody_waits(virtually: Any) -> None:
    """The timer is cancelled, and so nothing keeps the loop busy."""

    async def main() -> None:
        budget = Budget(burst=1, share=0.5, per_second=0.1)
        await budget.wait()
        waiting = asyncio.ensure_future(budget.wait())
        await asyncio.sleep(1)
        assert budget._timer is not None
        waiting.cancel()
        await asyncio.wait([waiting])
        assert budget._timer is None

    virtually.run(main)
