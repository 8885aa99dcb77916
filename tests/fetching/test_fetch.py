"""The fetch: each promise of the policy, alone and with others, in virtual time."""

from __future__ import annotations

import asyncio
import functools
import itertools
import pickle
import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import both_loops, run_on
from virtual import Virtually

from aioloader import Fetch, FetchError, FetchPolicy

if TYPE_CHECKING:
    from collections.abc import Callable


class Refused(Exception):
    """What a store says, as sources' errors say it."""

    def __init__(self, status: int, retry_after: float | None = None) -> None:
        super().__init__(f"status {status}")
        self.status, self.retry_after = status, retry_after
        self.passes = status in (408, 429, 500, 503)


class Store:
    """A store in virtual time: each request takes ``seconds``, and then what ``plan`` says.

    ``plan(item, attempt)`` returns None for an answer, seconds to take longer, or an error.
    """

    def __init__(self, plan: Callable[[Any, int], Any] = lambda item, attempt: None) -> None:
        self.plan = plan
        self.seconds = 1.0
        self.asked: list[tuple[Any, float]] = []
        self.inside = self.most = 0

    async def __call__(self, item: Any) -> Any:
        loop = asyncio.get_running_loop()
        attempt = sum(item == other for other, _ in self.asked)
        self.asked.append((item, loop.time() - 1000.0))
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            planned = self.plan(item, attempt)
            longer = planned if isinstance(planned, float) else 0.0
            await asyncio.sleep(self.seconds + longer)
            if isinstance(planned, Exception):
                raise planned
            return f"payload {item}"
        finally:
            self.inside -= 1

    @property
    def times(self) -> list[float]:
        return [round(at, 3) for _, at in self.asked]


async def every(fetch: Fetch[Any, Any], count: int) -> list[Any]:
    return await asyncio.gather(*map(fetch, range(count)), return_exceptions=True)


def policy(**options: Any) -> FetchPolicy:
    return FetchPolicy(**{"backoff": 0.0, **options})


# How many -----------------------------------------------------------------------------------------


def test_no_more_are_in_flight_than_the_policy_says(virtually: Any) -> None:
    store = Store()
    fetch = Fetch(store, policy(concurrency=7))
    assert virtually.run(lambda: every(fetch, 20)) == [f"payload {n}" for n in range(20)]
    assert (store.most, virtually.now) == (7, 3.0)
    assert [item for item, _ in store.asked] == list(range(20))
    figures = fetch.statistics()
    assert (figures.requests, figures.fetched, figures.in_flight, figures.limit) == (20, 20, 0, 7)
    assert figures.bytes == sum(len(f"payload {n}") for n in range(20))
    assert figures.p50_seconds == figures.p99_seconds == 1.0


def test_what_waits_before_its_next_attempt_leaves_its_room_to_others(virtually: Any) -> None:
    store = Store(lambda item, attempt: Refused(503, 50.0) if (item, attempt) == (0, 0) else None)
    fetch = Fetch(store, policy(concurrency=1))
    virtually.run(lambda: every(fetch, 4))
    assert store.asked == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (0, 51.0)]


def test_an_adaptive_policy_begins_with_few(virtually: Any) -> None:
    store = Store()
    fetch = Fetch(store, policy(concurrency=256, adaptive=True))
    virtually.run(lambda: every(fetch, 1000))
    assert store.times.count(0.0) == 16
    assert 16 < store.most <= 256


def test_a_store_that_asks_for_fewer_gets_fewer(virtually: Any) -> None:
    """More than eight at once are refused; the requests refused stay a small part."""
    store = Store(lambda item, attempt: Refused(429) if store.inside > 8 else None)
    fetch = Fetch(store, policy(concurrency=64, adaptive=True, retries=50, item_timeout=None))
    assert not [r for r in virtually.run(lambda: every(fetch, 600)) if isinstance(r, Exception)]
    figures = fetch.statistics()
    assert figures.throttled == figures.retries > 0
    assert figures.limit <= 16


# How long -----------------------------------------------------------------------------------------


def test_an_attempt_that_takes_too_long_is_made_again(virtually: Any) -> None:
    store = Store(lambda item, attempt: 100.0 if attempt == 0 else None)
    fetch = Fetch(store, policy(attempt_timeout=5.0))
    assert virtually.run(lambda: fetch("x")) == "payload x"
    assert store.times == [0.0, 5.0]
    assert store.inside == 0
    assert (fetch.statistics().timeouts, fetch.statistics().retries) == (1, 1)


@pytest.mark.parametrize("attempt_timeout", [4.0, None])
def test_an_item_that_takes_too_long_is_given_up(virtually: Any, attempt_timeout: Any) -> None:
    """Within the deadline, naming the item, the attempts and the last cause."""
    store = Store(lambda item, attempt: 100.0)
    fetch = Fetch(store, policy(attempt_timeout=attempt_timeout, item_timeout=10.0))
    with pytest.raises(
        FetchError, match=r"'x' could not be fetched: \d attempts? in 10 s"
    ) as caught:
        virtually.run(lambda: fetch("x"))
    assert virtually.now == pytest.approx(10.0, abs=0.1)
    assert caught.value.key == "'x'"
    assert caught.value.attempts == (3 if attempt_timeout else 1)
    assert "TimeoutError: no answer within" in caught.value.reason
    assert store.inside == 0


def test_the_wait_for_room_is_not_the_items_time(virtually: Any) -> None:
    fetch = Fetch(Store(), policy(concurrency=1, item_timeout=2.5))
    assert not [r for r in virtually.run(lambda: every(fetch, 20)) if isinstance(r, Exception)]


def test_the_wait_for_room_before_another_attempt_is(virtually: Any) -> None:
    """Or else an item that failed once might take for ever."""
    store = Store(lambda item, attempt: Refused(500) if item == 0 else None)
    fetch = Fetch(store, policy(concurrency=1, item_timeout=5.5))
    results = virtually.run(lambda: every(fetch, 50))
    assert isinstance(results[0], FetchError)
    assert "ended before another" in results[0].reason
    assert results[0].seconds == pytest.approx(5.5)


def test_a_time_out_of_the_clients_own_may_pass_too(virtually: Any) -> None:
    async def call(item: Any) -> str:
        async with asyncio.timeout(1.0 if not seen else None):
            seen.append(item)
            await asyncio.sleep(3.0)
        return "there"

    seen: list[Any] = []
    assert virtually.run(lambda: Fetch(call, policy())("x")) == "there"
    assert len(seen) == 2


# How often ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_tried_as_often_as_the_policy_says(virtually: Any, status: int) -> None:
    store = Store(lambda item, attempt: Refused(status))
    fetch = Fetch(store, policy(retries=3))
    with pytest.raises(FetchError, match="4 attempts") as caught:
        virtually.run(lambda: fetch("x"))
    assert f"Refused: status {status} (retries=3 are used up)" in str(caught.value)
    assert isinstance(caught.value.__cause__, Refused)
    assert len(store.asked) == 4
    assert fetch.statistics().failed == 1


def test_what_stays_is_told_at_once(virtually: Any) -> None:
    store = Store(lambda item, attempt: Refused(404))
    with pytest.raises(FetchError, match=r"1 attempt in 1 s, last Refused: status 404 \(such"):
        virtually.run(lambda: Fetch(store, policy())("x"))


def test_what_gives_up_within_another_is_told_once(virtually: Any) -> None:
    """A sample of several requests, each with the policy: key, attempts and cause are theirs."""
    store = Store(lambda item, attempt: ConnectionResetError("gone"))
    inner = Fetch(store, policy(retries=2))

    async def sample(number: int) -> object:
        return await inner("a.tar")

    outer = Fetch(sample, policy(retries=5))
    with pytest.raises(FetchError, match=r"3 could not be fetched: 3 attempts .*'a.tar'.* gone"):
        virtually.run(lambda: outer(3))
    assert outer.statistics().requests == 1
    assert inner.statistics().requests == 3
    assert outer.statistics().failed == 1


def test_the_program_may_judge_errors_itself(virtually: Any) -> None:
    asked: list[str] = []

    def retry_on(error: BaseException) -> bool:
        asked.append(str(error))
        return isinstance(error, KeyError)

    store = Store(lambda item, attempt: KeyError("k") if attempt == 0 else Refused(503))
    with pytest.raises(FetchError, match="such an error stays"):
        virtually.run(lambda: Fetch(store, policy(retry_on=retry_on))("x"))
    assert asked == ["'k'", "status 503"]


def test_pauses_are_drawn_below_a_bound_that_doubles(virtually: Any) -> None:
    pauses: list[list[float]] = [[] for _ in range(6)]
    store = Store(lambda item, attempt: Refused(500))
    options = {"backoff": 1.0, "max_backoff": 8.0, "retries": 6, "item_timeout": None}
    fetch = Fetch(store, policy(concurrency=400, **options))
    virtually.run(lambda: every(fetch, 60))
    for item in range(60):
        times = [at for other, at in store.asked if other == item]
        for number, (one, next_one) in enumerate(itertools.pairwise(times)):
            pauses[number].append(next_one - one - 1.0)
    for number, bound in enumerate([1.0, 2.0, 4.0, 8.0, 8.0, 8.0]):
        assert bound * 0.7 < max(pauses[number]) <= bound + 0.01
        assert min(pauses[number]) < bound * 0.3


def test_a_store_that_says_when_is_asked_then(virtually: Any) -> None:
    store = Store(lambda item, attempt: Refused(429, 30.0) if attempt == 0 else None)
    assert virtually.run(lambda: Fetch(store, policy())("x")) == "payload x"
    assert store.times == [0.0, 31.0]


def test_an_item_whose_time_ends_before_that_is_given_up_at_once(virtually: Any) -> None:
    store = Store(lambda item, attempt: Refused(429, 300.0))
    with pytest.raises(FetchError, match=r"item_timeout=60 s leaves no time for another"):
        virtually.run(lambda: Fetch(store, policy())("x"))
    assert virtually.now == 1.0


# The budget ---------------------------------------------------------------------------------------


def test_an_outage_meets_a_trickle_and_is_over_when_it_is_over(virtually: Any) -> None:
    """Ten attempts a second once the saved ones are gone, and all is well soon after the end."""
    store = Store(lambda item, attempt: Refused(503) if store.asked[-1][1] < 100.0 else None)
    store.seconds = 0.02
    fetch = Fetch(store, policy(concurrency=64, retries=10_000, item_timeout=None))
    results = virtually.run(lambda: every(fetch, 64))
    assert not [r for r in results if isinstance(r, Exception)]
    by_second = [sum(int(at) == second for _, at in store.asked) for second in range(101)]
    assert by_second[0] <= 64 + 64 + 10
    assert all(9 <= count <= 11 for count in by_second[1:100])
    assert virtually.now < 107.0


def test_failures_of_a_few_stay_within_their_share(virtually: Any) -> None:
    """One in ten fails at first: retries follow at once, and none waits for the trickle."""
    store = Store(lambda item, attempt: Refused(500) if item % 10 == 0 and attempt == 0 else None)
    store.seconds = 0.001  # so that hardly any retries come with time
    fetch = Fetch(store, policy(concurrency=10, retry_budget=0.2))
    virtually.run(lambda: every(fetch, 500))
    assert fetch.statistics().retries == 50
    assert virtually.now < 0.1


def test_an_item_that_finds_no_retry_in_time_is_given_up(virtually: Any) -> None:
    store = Store(lambda item, attempt: Refused(500))
    fetch = Fetch(store, policy(concurrency=200, retries=99, item_timeout=20.0))
    results = virtually.run(lambda: every(fetch, 200))
    assert all(isinstance(result, FetchError) for result in results)
    assert any("while retry_budget was used up" in result.reason for result in results)
    assert max(result.seconds for result in results) <= 20.01
    assert len(store.asked) <= 200 + 200 + 10 * 20


# Hedging ------------------------------------------------------------------------------------------


def hedging(store: Store, count: int, virtually: Any, **options: Any) -> Any:
    fetch = Fetch(store, policy(hedge_quantile=0.9, **options))
    virtually.run(lambda: every(fetch, count))
    return fetch.statistics()


def test_a_slow_request_is_overtaken(virtually: Any) -> None:
    store = Store(lambda item, attempt: 90.0 if (item, attempt) == (50, 0) else item % 7 / 100)
    figures = hedging(store, 200, virtually, concurrency=10, attempt_timeout=None)
    assert figures.hedges_won >= 1
    assert figures.requests == 200 + figures.hedges
    assert virtually.now < 25.0
    assert store.inside == 0


def test_there_is_no_second_request_until_something_is_known(virtually: Any) -> None:
    store = Store(lambda item, attempt: 30.0 if attempt == 0 else None)
    figures = hedging(store, 19, virtually, concurrency=19, attempt_timeout=None)
    assert figures.hedges == 0


def test_hedges_are_a_tenth_of_requests_at_most(virtually: Any) -> None:
    """Of all over time, and of those in flight: a store that is slow gets no double load."""
    store = Store(lambda item, attempt: None if item < 40 else random.choice([0.0, 30.0]))
    options = {"attempt_timeout": None, "item_timeout": None}
    figures = hedging(store, 1000, virtually, concurrency=40, **options)
    assert 4 <= figures.hedges <= 4 + 100
    assert store.most <= 44


def test_hedges_that_hang_are_a_tenth_of_those_in_flight_at_most(virtually: Any) -> None:
    """However many others have answered meanwhile."""
    store = Store(lambda item, attempt: 1000.0 if item % 8 == 0 and item > 40 else item % 7 / 9)
    options = {"attempt_timeout": None, "item_timeout": None}
    figures = hedging(store, 400, virtually, concurrency=40, **options)
    assert figures.hedges > 4
    assert store.most <= 44


def test_hedges_and_time_outs_and_retries_together(virtually: Any) -> None:
    def plan(item: int, attempt: int) -> Any:
        return random.choice([None] * 6 + [3.0, 90.0, Refused(500), Refused(408, 2.0)])

    store = Store(plan)
    options = {"attempt_timeout": 5.0, "item_timeout": None, "retries": 200, "adaptive": True}
    fetch = Fetch(store, policy(concurrency=30, hedge_quantile=0.8, **options))
    results = virtually.run(lambda: every(fetch, 300))
    assert results == [f"payload {n}" for n in range(300)]
    figures = fetch.statistics()
    assert figures.requests == 300 + figures.retries + figures.hedges == len(store.asked)
    assert figures.timeouts
    assert figures.hedges_won
    assert store.inside == figures.in_flight == 0


# One flight a key ---------------------------------------------------------------------------------


def test_a_hundred_who_ask_for_one_item_share_one_request(virtually: Any) -> None:
    store = Store()
    fetch = Fetch(store, policy())

    async def main() -> list[Any]:
        return await asyncio.gather(*(fetch("x") for _ in range(100)))

    payloads = virtually.run(main)
    assert len(store.asked) == 1
    assert all(payload is payloads[0] for payload in payloads)
    assert fetch.statistics().shared == 99
    assert fetch.statistics().fetched == 1


def test_what_has_landed_is_fetched_again(virtually: Any) -> None:
    """It is no cache."""
    store = Store()
    fetch = Fetch(store, policy())

    async def main() -> None:
        await fetch("x")
        await fetch("x")

    virtually.run(main)
    assert len(store.asked) == 2


def test_all_who_share_a_failure_get_an_error_of_their_own(virtually: Any) -> None:
    fetch = Fetch(Store(lambda item, attempt: Refused(404)), policy())

    async def main() -> list[Any]:
        return await asyncio.gather(*(fetch("x") for _ in range(5)), return_exceptions=True)

    errors = virtually.run(main)
    assert len({id(error) for error in errors}) == 5
    assert {str(error) for error in errors} == {str(errors[0])}
    assert all(isinstance(error.__cause__, Refused) for error in errors)


@pytest.mark.parametrize("others", [0, 1, 20])
def test_when_the_first_is_cancelled_another_asks(virtually: Any, others: int) -> None:
    store = Store()
    fetch = Fetch(store, policy())

    async def main() -> None:
        first, *rest = (asyncio.ensure_future(fetch("x")) for _ in range(1 + others))
        await asyncio.sleep(0.5)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        assert [await task for task in rest] == ["payload x"] * others

    virtually.run(main)
    assert len(store.asked) == (2 if others else 1)
    assert store.inside == 0


def test_who_waits_with_others_may_leave(virtually: Any) -> None:
    store = Store()
    fetch = Fetch(store, policy())

    async def main() -> None:
        first, second, third = (asyncio.ensure_future(fetch("x")) for _ in range(3))
        await asyncio.sleep(0.5)
        second.cancel()
        assert await first == await third == "payload x"
        assert second.cancelled()

    virtually.run(main)
    assert len(store.asked) == 1


def test_items_that_cannot_be_told_apart_are_fetched_each(virtually: Any) -> None:
    store = Store()
    fetch = Fetch(store, policy())

    async def main() -> None:
        await asyncio.gather(fetch(["x"]), fetch(["x"]))

    virtually.run(main)
    assert len(store.asked) == 2


def test_an_error_of_the_programs_own_rules_is_everybodys(virtually: Any) -> None:
    """What ``retry_on`` raises comes as it is, and nobody waits for ever."""

    def retry_on(error: BaseException) -> bool:
        raise LookupError("rules")

    fetch = Fetch(Store(lambda item, attempt: Refused(500)), policy(retry_on=retry_on))

    async def main() -> list[Any]:
        return await asyncio.gather(*(fetch("x") for _ in range(3)), return_exceptions=True)

    assert [type(error) for error in virtually.run(main)] == [LookupError] * 3


# Cancellation -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    cancelled=st.lists(st.tuples(st.integers(0, 29), st.floats(0, 12)), max_size=12),
    by_scope=st.booleans(),
)
def test_whenever_somebody_is_cancelled_the_others_get_all(
    seed: int, cancelled: list[tuple[int, float]], by_scope: bool
) -> None:
    """At the gate, in a request, a hedge, a pause or another's flight: no room is lost."""
    rng = random.Random(seed)
    store = Store(lambda item, attempt: rng.choice([None, 2.0, Refused(500), Refused(429, 1.0)]))
    options = {"attempt_timeout": 2.5, "item_timeout": None, "retries": 1000}
    fetch = Fetch(store, policy(concurrency=4, hedge_quantile=0.5, backoff=0.1, **options))

    async def main() -> None:
        tasks = [asyncio.ensure_future(fetch(number // 2)) for number in range(30)]
        loop = asyncio.get_running_loop()
        for number, at in cancelled:
            loop.call_later(at, tasks[number].cancel)
        await asyncio.wait(tasks)
        for number, task in enumerate(tasks):
            assert task.cancelled() or task.result() == f"payload {number // 2}"
            assert not task.cancelled() or number in dict(cancelled)
        (lane,) = fetch._lanes.values()
        assert lane.gate.in_flight == lane.in_flight == lane.hedging == store.inside == 0
        assert not lane.flights
        assert lane.retries.waiting == 0

    with pytest.MonkeyPatch.context() as patch:
        Virtually(patch).run(main)


# The object ---------------------------------------------------------------------------------------


async def module_level(item: int) -> int:
    """Pickle by name."""
    return item + 1


def test_it_pickles_with_its_function_and_policy() -> None:
    fetch = Fetch(module_level, FetchPolicy(concurrency=3), name=str)
    asyncio.run(fetch(1))
    copy = pickle.loads(pickle.dumps(fetch))
    assert copy.policy == fetch.policy
    assert asyncio.run(copy(1)) == 2
    assert copy.statistics().requests == 1


def test_pairs_tell_which_item_it_is_and_share_all_else(virtually: Any) -> None:
    """Limits, flights and counts; pickled they are pairs, too."""
    store = Store()
    fetch = Fetch(store, policy(concurrency=1))
    pairs = fetch.paired()

    async def main() -> list[Any]:
        return await asyncio.gather(fetch("x"), pairs("x"), pairs("y"))

    assert virtually.run(main) == ["payload x", ("x", "payload x"), ("y", "payload y")]
    assert (store.most, len(store.asked)) == (1, 2)
    assert pairs.statistics() == fetch.statistics()
    assert asyncio.run(pickle.loads(pickle.dumps(Fetch(module_level).paired()))(1)) == (1, 2)


def test_it_works_on_one_loop_after_another_and_counts_them_together() -> None:
    fetch = Fetch(module_level)
    for loop in ("asyncio", "uvloop", "asyncio"):
        assert run_on(loop, every(fetch, 3)) == [1, 2, 3]
    assert fetch.statistics().requests == 9


@both_loops
def test_loops_in_several_threads_have_limits_of_their_own(loop: str) -> None:
    inside, most = [0, 0], [0, 0]

    async def call(item: tuple[int, int]) -> int:
        which = item[0]
        inside[which] += 1
        most[which] = max(most[which], inside[which])
        await asyncio.sleep(0.001)
        inside[which] -= 1
        return item[1]

    fetch = Fetch(call, FetchPolicy(concurrency=2))

    async def ask(which: int) -> list[int]:
        return await asyncio.gather(*(fetch((which, number)) for number in range(20)))

    async def main() -> None:
        other = asyncio.to_thread(run_on, loop, ask(1))
        assert await asyncio.gather(ask(0), other) == [list(range(20))] * 2

    run_on(loop, main())
    assert most == [2, 2]
    assert fetch.statistics().fetched == 40


class Callable_:
    """An object whose call is a coroutine."""

    async def __call__(self, item: int) -> int:
        return item


def test_whatever_is_a_coroutine_function_will_do() -> None:
    for function in (
        module_level,
        Callable_(),
        functools.partial(module_level),
        Callable_().__call__,
    ):
        assert asyncio.run(Fetch(function)(1)) in (1, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [len, None, lambda item: item, SimpleNamespace(func=len)])
def test_what_is_none_is_refused(function: Any) -> None:
    with pytest.raises(TypeError, match="function="):
        Fetch(function)
    with pytest.raises(TypeError, match="policy="):
        Fetch(module_level, function or 7)


def test_messages_name_items_without_credentials(virtually: Any) -> None:
    async def call(url: str) -> bytes:
        raise OSError(f"no such thing: {url}")

    url = "https://me:hunter2@host/key?X-Amz-Signature=abcdef"
    with pytest.raises(FetchError, match="https://…@host/key") as caught:
        virtually.run(lambda: Fetch(call, policy())(url))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    for text in (str(caught.value), repr(caught.value), repr(caught.value.__dict__)):
        assert "hunter2" not in text
        assert "abcdef" not in text


def test_long_names_are_cut_and_chosen_by_the_program(virtually: Any) -> None:
    store = Store(lambda item, attempt: Refused(404))
    with pytest.raises(FetchError) as caught:
        virtually.run(lambda: Fetch(store, policy())("x" * 1000))
    assert len(caught.value.key) == 200
    with pytest.raises(FetchError, match=r"^object 7 could not"):
        virtually.run(lambda: Fetch(store, policy(), name=lambda n: f"object {n}")(7))


def test_its_repr_tells_what_it_does() -> None:
    fetch = Fetch(module_level)
    asyncio.run(every(fetch, 2))
    assert repr(fetch) == "<Fetch of module_level: 0 in flight, 2 fetched>"
