"""Hedging: the first answer counts, and whatever loses has ended when it is there."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from aioloader._fetching.hedging import hedged


class Requests:
    """Requests that take so many seconds and then answer or raise, in order."""

    def __init__(self, *plans: tuple[float, Any], ending: float = 0.0) -> None:
        self._plans = list(plans)
        self._ending = ending
        self.made = self.running = 0
        self.cancelled: list[int] = []

    async def __call__(self) -> Any:
        number = self.made
        seconds, answer = self._plans[number]
        self.made += 1
        self.running += 1
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled.append(number)
            await asyncio.sleep(self._ending)  # as a client that closes a connection
            raise
        finally:
            self.running -= 1
        if isinstance(answer, Exception):
            raise answer
        return answer


async def run(requests: Requests, delay: float = 1.0, *, allowed: bool = True) -> Any:
    try:
        return await hedged(requests, delay, lambda: allowed)
    finally:
        assert requests.running == 0


@pytest.mark.parametrize(
    ("plans", "expected", "made", "seconds"),
    [
        ([(0.5, "a")], ("a", False), 1, 0.5),
        ([(3.0, "a"), (1.0, "b")], ("b", True), 2, 2.0),
        ([(3.0, "a"), (9.0, "b")], ("a", False), 2, 3.0),
        ([(3.0, "a"), (2.0, "b")], ("a", False), 2, 3.0),  # both at once
        ([(3.0, "a"), (0.5, OSError("2"))], ("a", False), 2, 3.0),
        ([(2.0, OSError("1")), (3.0, "b")], ("b", True), 2, 4.0),
    ],
)
def test_the_first_answer_counts(
    virtually: Any, plans: Any, expected: Any, made: int, seconds: float
) -> None:
    requests = Requests(*plans)
    assert virtually.run(lambda: run(requests)) == expected
    assert requests.made == made
    assert virtually.now == pytest.approx(seconds)


def test_the_first_error_is_told_when_both_fail(virtually: Any) -> None:
    for plans in (
        ((2.0, OSError("1")), (9.0, OSError("2"))),
        ((9.0, OSError("1")), (0.1, OSError("2"))),
    ):
        requests = Requests(*plans)
        with pytest.raises(OSError, match="1"):
            virtually.run(lambda requests=requests: run(requests))
        assert requests.made == 2


def test_an_early_error_makes_no_second_request(virtually: Any) -> None:
    requests = Requests((0.5, OSError("1")))
    with pytest.raises(OSError, match="1"):
        virtually.run(lambda: run(requests))
    assert requests.made == 1


def test_there_is_no_second_request_unless_it_is_allowed(virtually: Any) -> None:
    requests = Requests((3.0, "a"))
    assert virtually.run(lambda: run(requests, allowed=False)) == ("a", False)


def test_a_request_that_is_slow_still_gets_a_second_when_it_is_allowed(virtually: Any) -> None:
    allowed = iter([False, False, True])
    requests = Requests((9.0, "a"), (1.0, "b"))
    answer = virtually.run(lambda: hedged(requests, 1.0, lambda: next(allowed)))
    assert (answer, virtually.now) == (("b", True), 4.0)


def test_the_loser_has_ended_even_if_that_takes_time(virtually: Any) -> None:
    requests = Requests((9.0, "a"), (1.0, "b"), ending=0.5)
    assert virtually.run(lambda: run(requests)) == ("b", True)
    assert requests.cancelled == [0]
    assert virtually.now == pytest.approx(2.5)


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("by", ["task", "scope"])
def test_a_cancellation_ends_both(virtually: Any, at: float, by: str) -> None:
    """Each is cancelled once, and gets the time that it takes to end."""
    requests = Requests((9.0, "a"), (9.0, "b"), ending=0.5)

    async def main() -> None:
        if by == "scope":
            with anyio.move_on_after(at) as scope:
                await run(requests)
            assert scope.cancelled_caught
            return
        task = asyncio.ensure_future(run(requests))
        await asyncio.sleep(at)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    virtually.run(main)
    assert requests.running == 0
    assert sorted(requests.cancelled) == list(range(requests.made))
    assert virtually.now == pytest.approx(at + 0.5 if requests.made else at)


def test_a_second_cancellation_hurries_them(virtually: Any) -> None:
    requests = Requests((9.0, "a"), (9.0, "b"), ending=5.0)

    async def main() -> None:
        task = asyncio.ensure_future(run(requests))
        await asyncio.sleep(2.0)
        task.cancel()
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    virtually.run(main)
    assert virtually.now == pytest.approx(2.5)
