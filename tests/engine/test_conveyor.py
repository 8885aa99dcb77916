"""The conveyor: one ticket in, one outcome out; bounded by its gate, and empty when it is left."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import both_loops, run_on, until

from aioloader._engine.conveyor import Conveyor, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class Permits:
    """A gate with a number of permits, which remembers who has one."""

    def __init__(self, count: int) -> None:
        self.free = count
        self.came_back = anyio.Event()
        self.out: set[Any] = set()
        self.granted: list[Any] = []
        self.most = 0

    def grant(self, ticket: Any) -> Permit | None:
        if not self.free:
            return None
        self.free -= 1
        self.out.add(ticket)
        self.granted.append(ticket)
        self.most = max(self.most, len(self.out))
        return Permit(self, ticket)

    async def wait(self) -> None:
        self.came_back = anyio.Event()
        if not self.free:
            await self.came_back.wait()


class Permit:
    def __init__(self, permits: Permits, ticket: Any) -> None:
        self.permits = permits
        self.ticket = ticket

    def release(self) -> None:
        if self.ticket in self.permits.out:
            self.permits.out.remove(self.ticket)
            self.permits.free += 1
            self.permits.came_back.set()


async def at_once(ticket: Any, permit: Any) -> Any:
    return ticket


class Doors:
    """Work that waits, ticket by ticket, until it is let through."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.cancelled: list[Any] = []
        self.doors: dict[Any, anyio.Event] = {}

    async def __call__(self, ticket: Any, permit: Any) -> Any:
        self.begun.append(ticket)
        self.doors[ticket] = anyio.Event()
        try:
            await self.doors[ticket].wait()
        except asyncio.CancelledError:
            self.cancelled.append(ticket)
            raise
        if ticket == "bad":
            raise ValueError(ticket)
        return f"value of {ticket}"

    def open(self, *tickets: Any) -> None:
        for ticket in tickets:
            self.doors[ticket].set()


async def read(belt: Conveyor[Any, Any]) -> Outcome[Any, Any] | None:
    """Wait for the next outcome, as a consumer does; None is the end."""
    with anyio.fail_after(10):
        while (outcome := belt.take()) is None:
            if belt.ended:
                return None
            await belt.changed()
    return outcome


async def read_all(belt: Conveyor[Any, Any]) -> list[Any]:
    tickets = []
    while (outcome := await read(belt)) is not None:
        tickets.append(outcome.ticket)
        outcome.permit.release()
    return tickets


def belt_over(
    tickets: Iterable[Any],
    work: Callable[..., Any] = at_once,
    *,
    permits: Permits | None = None,
    **options: Any,
) -> Conveyor[Any, Any]:
    return Conveyor(iter(tickets), work, gate=permits or Permits(3), **options)


# In order and out of order ------------------------------------------------------------------------


async def test_outcomes_come_in_ticket_order_however_the_work_ends() -> None:
    work = Doors()
    async with belt_over("abc", work) as belt:
        await until(lambda: work.begun == ["a", "b", "c"])
        work.open("c", "b")
        await until(lambda: belt.ready == 2)
        assert belt.take() is None
        work.open("a")
        outcomes = [await read(belt) for _ in range(3)]
    assert [(o.ticket, o.value) for o in outcomes if o] == [(t, f"value of {t}") for t in "abc"]


async def test_outcomes_come_as_the_work_ends_where_order_does_not_matter() -> None:
    work = Doors()
    async with belt_over("abc", work, ordered=False) as belt:
        await until(lambda: len(work.begun) == 3)
        seen = []
        for ticket in "cab":
            work.open(ticket)
            outcome = await read(belt)
            assert outcome is not None
            seen.append(outcome.ticket)
            outcome.permit.release()
        assert await read(belt) is None
    assert seen == ["c", "a", "b"]


async def test_a_feeder_with_permits_for_many_lets_others_run_meanwhile() -> None:
    """Entering a loader of great depth neither takes longer, nor blocks the loop."""
    permits, doors = Permits(200), Doors()
    async with belt_over(range(200), doors, permits=permits):
        seen = [len(permits.granted)]
        while seen[-1] < 200:
            await asyncio.sleep(0)
            seen.append(len(permits.granted))
    assert max(later - before for before, later in pairwise(seen)) <= 16


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_belt_without_tickets_has_ended(ordered: bool) -> None:
    async with belt_over([], ordered=ordered) as belt:
        assert await read(belt) is None
        assert belt.ended


async def test_the_figures_of_a_belt() -> None:
    work = Doors()
    async with belt_over("abc", work) as belt:
        await until(lambda: len(work.begun) == 3)
        work.open("b")
        await until(lambda: belt.ready == 1)
        assert (belt.loading, belt.ready, belt.ended) == (2, 1, False)
        assert repr(belt) == "<Conveyor: 2 loading, 1 ready>"


# Permits ------------------------------------------------------------------------------------------


async def test_work_begins_with_a_permit_and_in_ticket_order() -> None:
    """A later ticket must not take the last permit before an earlier one."""
    permits, work = Permits(2), Doors()
    async with belt_over("abcd", work, permits=permits) as belt:
        await until(lambda: len(work.begun) == 2)
        await asyncio.sleep(0.01)
        assert work.begun == ["a", "b"]
        work.open("a", "b")
        outcome = await read(belt)
        assert outcome is not None
        await asyncio.sleep(0.01)
        assert work.begun == ["a", "b"]  # its value is held: so is its permit
        outcome.permit.release()
        await until(lambda: work.begun == ["a", "b", "c"])
    assert permits.out == set()
    assert permits.most == 2


async def test_the_permit_is_what_the_gate_gave() -> None:
    permits = Permits(1)

    async def work(ticket: Any, permit: Permit) -> Any:
        return permit.ticket

    async with belt_over("ab", work, permits=permits) as belt:
        for ticket in "ab":
            outcome = await read(belt)
            assert outcome is not None
            assert outcome.value == outcome.permit.ticket == ticket  # type: ignore[attr-defined]
            outcome.permit.release()


async def test_tickets_are_drawn_no_earlier_than_they_are_needed() -> None:
    """At most one waits for its permit."""
    drawn: list[int] = []

    def tickets() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    async with belt_over(tickets(), permits=Permits(3)):
        await until(lambda: len(drawn) >= 3)
        await asyncio.sleep(0.01)
        assert len(drawn) <= 4


async def test_tickets_may_be_drawn_elsewhere() -> None:
    """In a thread, where drawing one takes a while."""

    async def draw(tickets: Iterator[str]) -> str | None:
        return await asyncio.to_thread(next, tickets, None)

    async with belt_over("abcdefgh", draw=draw) as belt:
        assert await read_all(belt) == list("abcdefgh")


# Errors -------------------------------------------------------------------------------------------


async def test_an_error_arrives_in_its_turn_and_does_not_end_the_belt() -> None:
    permits, work = Permits(3), Doors()
    async with belt_over(["a", "bad", "c", "d"], work, permits=permits) as belt:
        await until(lambda: len(work.begun) == 3)
        work.open("bad")
        await until(lambda: "bad" not in permits.out)  # an error holds no permit
        assert belt.take() is None
        await until(lambda: len(work.begun) == 4)
        work.open("a", "c", "d")
        outcomes = [await read(belt) for _ in range(4)]
        assert await read(belt) is None
    assert [type(o.error) for o in outcomes if o] == [
        type(None),
        ValueError,
        type(None),
        type(None),
    ]


async def test_a_gate_that_fails_ends_the_belt_after_what_was_begun() -> None:
    """It says so, and is not to be mistaken for the end of the tickets."""

    class Failing(Permits):
        def grant(self, ticket: Any) -> Permit | None:
            if ticket == "c":
                raise OSError("no gate")
            return super().grant(ticket)

    permits = Failing(5)
    async with belt_over("abcd", permits=permits) as belt:
        assert await read_all(belt) == ["a", "b"]
        assert isinstance(belt.failure, OSError)
    assert permits.out == set()


async def test_tickets_that_fail_end_the_belt_after_those_before() -> None:
    def tickets() -> Iterator[str]:
        yield "a"
        raise OSError("no ticket")

    async with belt_over(tickets()) as belt:
        assert await read_all(belt) == ["a"]
        assert isinstance(belt.failure, OSError)


async def test_a_belt_that_ends_well_has_no_failure() -> None:
    async with belt_over("ab") as belt:
        await read_all(belt)
        assert belt.failure is None


# Without a task -----------------------------------------------------------------------------------


class Shortcuts:
    """Work that needs no task: it is settled by hand. Tickets in capitals need one."""

    def __init__(self) -> None:
        self.settles: dict[Any, Callable[..., None]] = {}
        self.abandoned: list[Any] = []

    def __call__(self, ticket: Any, permit: Any, settle: Callable[..., None]) -> Any:
        if str(ticket).isupper():
            return None
        if ticket == "bad":
            settle(None, ValueError(ticket))
        self.settles[ticket] = settle
        return Shortcut(self, ticket)


class Shortcut:
    def __init__(self, all_of_them: Shortcuts, ticket: Any) -> None:
        self.all, self.ticket = all_of_them, ticket

    def abandon(self) -> None:
        self.all.abandoned.append(self.ticket)


@pytest.mark.parametrize("ordered", [True, False])
async def test_work_may_begin_without_a_task(ordered: bool) -> None:
    """It is settled by whoever ends it, and comes in its turn; the rest is awaited."""
    begin = Shortcuts()
    async with belt_over("aBc", permits=Permits(9), begin=begin, ordered=ordered) as belt:
        await until(lambda: len(begin.settles) == 2 and belt.loading == 2)
        begin.settles["c"]("C", None)
        begin.settles["a"]("A", None)
        outcomes = [await read(belt) for _ in range(3)]
        assert await read(belt) is None
    found = [(o.ticket, o.value) for o in outcomes if o]
    assert found == ([("a", "A"), ("B", "B"), ("c", "C")] if ordered else found)
    assert sorted(found) == [("B", "B"), ("a", "A"), ("c", "C")]
    assert begin.abandoned == []


async def test_work_that_cannot_even_begin_fails_in_its_turn() -> None:
    permits, begin = Permits(2), Shortcuts()
    async with belt_over(["a", "bad"], permits=permits, begin=begin) as belt:
        await until(lambda: permits.out == {"a"})
        assert belt.take() is None
        begin.settles["a"]("A", None)
        first, second = await read(belt), await read(belt)
        assert first is not None
        assert second is not None
        assert (first.value, type(second.error)) == ("A", ValueError)
        assert await read(belt) is None


@pytest.mark.parametrize("ordered", [True, False])
async def test_leaving_abandons_what_no_task_waits_for(ordered: bool) -> None:
    permits, begin = Permits(3), Shortcuts()
    async with belt_over("abcd", permits=permits, begin=begin, ordered=ordered) as belt:
        await until(lambda: len(begin.settles) == 3)
        begin.settles["a"]("A", None)
    assert sorted(begin.abandoned) == ["b", "c"]
    assert belt.ended
    assert not (permits.out - (set() if ordered else {"a"}))


async def test_tickets_begin_where_a_permit_is_without_a_turn_of_the_loop() -> None:
    """Also the last, behind which nothing more comes."""
    permits, begin = Permits(1), Shortcuts()
    async with belt_over("abc", permits=permits, begin=begin) as belt:
        for ticket in "abc":
            belt.feed()
            assert list(begin.settles)[-1] == ticket
            belt.feed()  # there is no permit
            begin.settles[ticket](ticket, None)
            outcome = belt.take()
            assert outcome is not None
            outcome.permit.release()
        assert belt.ended


async def test_what_fails_while_it_is_fed_ends_the_belt_and_not_its_reader() -> None:
    def tickets() -> Iterator[str]:
        yield "a"
        raise OSError("no ticket")

    begin = Shortcuts()
    async with belt_over(tickets(), begin=begin) as belt:
        belt.feed()
        assert not belt.ended
        begin.settles["a"]("A", None)
        assert await read(belt) is not None
        assert await read(belt) is None
        assert isinstance(belt.failure, OSError)


async def test_a_belt_whose_feeding_was_interrupted_has_ended() -> None:
    """A ticket may have been drawn by then, and must not seem to be on its way for ever."""

    def interrupted(ticket: Any, permit: Any, settle: Any) -> Any:
        raise KeyboardInterrupt

    async with belt_over("ab", begin=interrupted) as belt:
        with pytest.raises(KeyboardInterrupt):
            belt.feed()
        assert belt.ended
        assert isinstance(belt.failure, KeyboardInterrupt)


async def test_one_timer_serves_many_waits() -> None:
    """Each ends at its own limit."""
    async with belt_over("a", Doors()) as belt:
        timers = set()
        for _ in range(50):
            waiting = asyncio.ensure_future(belt.changed(60.0))
            await asyncio.sleep(0)
            timers.add(belt._alarm._timer)
            waiting.cancel()
        assert len(timers) == 1
        long, short = (asyncio.ensure_future(belt.changed(s)) for s in (60.0, 0.02))
        assert await short is False
        assert not long.done()
    assert await long is True
    assert belt._alarm._timer is None


# Leaving ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
async def test_leaving_cancels_the_work_and_releases_every_permit(ordered: bool) -> None:
    """Of what is under way, of what is ready and was not taken, and of what waits at the gate."""
    permits, work = Permits(3), Doors()
    async with belt_over("abcdef", work, permits=permits, ordered=ordered) as belt:
        await until(lambda: len(work.begun) == 3)
        work.open("b")
        await until(lambda: belt.ready == 1)
    assert sorted(work.cancelled) == ["a", "c"]
    assert permits.out == set()
    assert belt.ended
    assert belt.take() is None


async def test_a_value_that_was_taken_keeps_its_permit_when_the_belt_is_left() -> None:
    permits = Permits(2)
    async with belt_over("ab", permits=permits) as belt:
        outcome = await read(belt)
    assert outcome is not None
    assert permits.out == {"a"}
    outcome.permit.release()
    assert permits.out == set()


async def test_the_bodys_own_exception_is_not_wrapped() -> None:
    permits = Permits(2)

    async def fail() -> None:
        async with belt_over("abc", Doors(), permits=permits):
            await until(lambda: len(permits.out) == 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert permits.out == set()


async def test_a_reader_that_waits_is_woken_when_the_belt_is_left() -> None:
    belt = belt_over("a", Doors())
    async with belt:
        reading = asyncio.ensure_future(read(belt))
        await asyncio.sleep(0.01)
        assert not reading.done()
    assert await reading is None


async def test_a_reader_that_is_cancelled_has_taken_nothing() -> None:
    """At whatever moment: the next one gets what it would have got."""
    seen: list[int] = []
    async with belt_over(range(40), permits=Permits(2)) as belt:
        for turns in range(40):
            reading = asyncio.ensure_future(read(belt))
            for _ in range(turns % 5):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            if not reading.cancelled() and (outcome := reading.result()) is not None:
                seen.append(outcome.ticket)
                outcome.permit.release()
        seen += await read_all(belt)
    assert seen == list(range(40))


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_cancelled_belt_releases_every_permit(ordered: bool) -> None:
    """Whichever turn of the loop the cancellation comes in."""

    async def work(ticket: int, permit: Any) -> int:
        for _ in range(ticket % 3):
            await anyio.sleep(0)
        return ticket

    async def run(permits: Permits) -> None:
        async with belt_over(range(50), work, permits=permits, ordered=ordered) as belt:
            await read_all(belt)

    tasks = len(asyncio.all_tasks())
    for turns in range(30):
        permits = Permits(3)
        running = asyncio.ensure_future(run(permits))
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        assert permits.out == set()
        assert len(asyncio.all_tasks()) == tasks


# Stopping -----------------------------------------------------------------------------------------


async def test_stopping_lets_what_was_begun_finish() -> None:
    permits, work = Permits(2), Doors()
    async with belt_over("abcdef", work, permits=permits) as belt:
        await until(lambda: len(work.begun) == 2)
        belt.stop_feeding()
        work.open("a", "b")
        assert await read_all(belt) == ["a", "b"]
        assert belt.failure is None
    assert work.begun == ["a", "b"]
    assert permits.out == set()


async def test_a_belt_that_is_stopped_at_once_begins_nothing() -> None:
    work = Doors()
    async with belt_over("abcdef", work) as belt:
        belt.stop_feeding()
        await asyncio.sleep(0.01)
        assert work.begun == []
        assert await read(belt) is None


async def test_stopping_a_belt_that_has_ended_is_harmless() -> None:
    belt = belt_over("a")
    belt.stop_feeding()
    async with belt:
        await read_all(belt)
        belt.stop_feeding()
    belt.stop_feeding()


# All of it ----------------------------------------------------------------------------------------


@both_loops
@settings(max_examples=40, deadline=None)
@given(
    delays=st.lists(st.integers(0, 5), max_size=25),
    failing=st.sets(st.integers(0, 24), max_size=5),
    count=st.integers(1, 4),
    ordered=st.booleans(),
    held=st.integers(0, 3),
)
def test_every_ticket_has_one_outcome(
    loop: str, delays: list[int], failing: set[int], count: int, ordered: bool, held: int
) -> None:
    """Whatever takes how long, whatever fails, and however long the consumer holds values."""

    async def work(ticket: int, permit: Any) -> int:
        for _ in range(delays[ticket]):
            await anyio.sleep(0)
        if ticket in failing:
            raise ValueError(ticket)
        return ticket * 10

    async def main() -> None:
        permits = Permits(count)
        holding: list[Outcome[int, int]] = []
        seen: list[int] = []
        async with belt_over(range(len(delays)), work, permits=permits, ordered=ordered) as belt:
            while (outcome := await read(belt)) is not None:
                seen.append(outcome.ticket)
                if outcome.ticket in failing:
                    assert isinstance(outcome.error, ValueError)
                else:
                    assert outcome.value == outcome.ticket * 10
                    holding.append(outcome)
                if len(holding) > min(held, count - 1):
                    holding.pop(0).permit.release()
        for outcome in holding:
            outcome.permit.release()
        assert (seen if ordered else sorted(seen)) == list(range(len(delays)))
        assert permits.granted == list(range(len(delays)))
        assert permits.most <= count
        assert permits.out == set()

    run_on(loop, main())
