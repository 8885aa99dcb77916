"""Coroutines: many at once, in order, no more than the limit, and none left behind."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import Any

import anyio
import pytest
from executor_bench import ROWS, bench
from hypothesis import given, settings
from hypothesis import strategies as st
from support import both_loops, run_on, until

from aioloader._executors import coroutines as module
from aioloader._executors.coroutines import Calls, Swarm
from aioloader.errors import ItemError


class Gate:
    """A coroutine function that waits until it is let through, and counts who is inside."""

    def __init__(self) -> None:
        self.inside = self.most = 0
        self.begun: list[Any] = []
        self.ended: list[Any] = []
        self.cancelled: list[Any] = []
        self.open = anyio.Event()

    async def __call__(self, item: Any, arrays: Any = None, seed: Any = None) -> Any:
        self.begun.append(item)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.open.wait()
            if isinstance(item, str):
                raise ValueError(item)
        except asyncio.CancelledError:
            self.cancelled.append(item)
            raise
        finally:
            self.inside -= 1
        self.ended.append(item)
        if arrays is not None:
            arrays["x"][...] = item


async def test_as_many_items_as_allowed_are_waited_for_at_once() -> None:
    """Over all fills together, in the order in which they came."""
    gate = Gate()
    async with bench(gate, "coroutines", max_concurrency=10) as b:
        fills = [asyncio.ensure_future(b.fill(range(n, n + ROWS))) for n in (0, 8, 16)]
        await until(lambda: gate.inside == 10)
        await asyncio.sleep(0.01)
        assert gate.begun == list(range(10))
        gate.open.set()
        results = await asyncio.gather(*fills)
    assert [x for result in results for x in result.x] == list(range(24))
    assert gate.begun == list(range(24))
    assert gate.most == 10


async def test_a_slow_item_holds_up_no_other() -> None:
    """There is room for others beside it, also for those of later fills."""
    slow = anyio.Event()

    async def load(item: int, arrays: Any, seed: int | None) -> None:
        if item == 0:
            await slow.wait()
        arrays["x"][...] = item

    async with bench(load, "coroutines", max_concurrency=2) as b:
        first = asyncio.ensure_future(b.fill([0, 1, 2]))
        with anyio.fail_after(10):
            assert (await b.fill([3, 4, 5])).x[:3] == [3, 4, 5]
        assert not first.done()
        slow.set()
        assert (await first).x[:3] == [0, 1, 2]


async def test_after_a_failure_no_more_are_begun_and_those_begun_finish() -> None:
    """The error is that of the lowest failing row, though a later one failed first."""
    gate = Gate()
    first = anyio.Event()

    async def load(item: Any, arrays: Any, seed: Any) -> None:
        gate.begun.append(item)
        if item == "late":
            await first.wait()
        if item == "early":
            first.set()
        if isinstance(item, str):
            raise ValueError(item)

    async with bench(load, "coroutines", max_concurrency=4) as b:
        with pytest.raises(ItemError, match="late") as caught:
            await b.fill([0, "late", 2, "early", 4, 5, 6, 7])
        assert caught.value.row == 1
    assert gate.begun[:4] == [0, "late", 2, "early"]
    assert len(gate.begun) < ROWS


async def test_a_cancelled_fill_begins_no_more_items() -> None:
    gate = Gate()
    async with bench(gate, "coroutines", max_concurrency=2) as b:
        filling = asyncio.ensure_future(b.fill(range(ROWS)))
        await until(lambda: gate.begun == [0, 1])
        filling.cancel()
        await asyncio.wait([filling])
        gate.open.set()
        assert (await b.fill([8])).x[0] == 8
    assert gate.begun == [0, 1, 8]


async def test_leaving_cancels_what_is_under_way() -> None:
    """And waits until it has ended: what holds a connection can give it back."""
    gate = Gate()
    async with bench(gate, "coroutines", max_concurrency=3) as b:
        filling = asyncio.ensure_future(b.fill(range(ROWS)))
        await until(lambda: gate.inside == 3)
        filling.cancel()
        await asyncio.wait([filling])
    assert gate.inside == 0
    assert sorted(gate.cancelled) == [0, 1, 2]


async def test_an_item_that_fails_while_the_executor_is_left_is_no_error_of_the_leaving() -> None:
    """Nobody waits for it any more: its error comes a moment too late, or from tidying up."""
    begun, tidied = anyio.Event(), False

    async def load(item: int, arrays: Any, seed: int | None) -> None:
        nonlocal tidied
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            tidied = True
            raise OSError("the connection is gone")

    async with bench(load, "coroutines") as b:
        filling = asyncio.ensure_future(b.fill([0]))
        await begun.wait()
        filling.cancel()
        await asyncio.wait([filling])
    assert tidied


async def test_a_cancellation_of_the_users_own_is_an_error_like_any_other() -> None:
    """Nobody cancelled the fill: something inside ``load`` was."""

    async def load(item: int, arrays: Any, seed: int | None) -> None:
        if item == 2:
            raise asyncio.CancelledError("by hand")

    async with bench(load, "coroutines") as b:
        with anyio.fail_after(10), pytest.raises(ItemError, match="CancelledError") as caught:
            await b.fill(range(4))
        assert caught.value.row == 2
        await b.fill([0])


async def test_an_items_timeout_cancels_it_and_nothing_else() -> None:
    gate = Gate()
    async with bench(gate, "coroutines", item_timeout=0.05, max_concurrency=2) as b:
        with pytest.raises(ItemError, match=r"item_timeout=0\.05 s"):
            await b.fill([0])
        assert gate.cancelled == [0]
        gate.open.set()
        await b.fill([1, 2])


async def test_a_timeout_of_the_users_own_is_told_as_such() -> None:
    """It has nothing to do with the executor's limit."""

    async def load(item: int, arrays: Any, seed: int | None) -> None:
        with anyio.fail_after(0.001):
            await anyio.sleep_forever()

    async with bench(load, "coroutines", item_timeout=20) as b:
        with pytest.raises(ItemError) as caught:
            await b.fill([0])
        assert "item_timeout" not in str(caught.value)
        assert isinstance(caught.value.__cause__, TimeoutError)


async def test_timeouts_are_tried_again_like_other_errors() -> None:
    tries: list[int] = []

    async def load(item: int, arrays: Any, seed: int | None) -> None:
        tries.append(item)
        if len(tries) == 1:
            await anyio.sleep_forever()
        arrays["x"][...] = item

    async with bench(load, "coroutines", item_timeout=0.05, retries=1) as b:
        result = await b.fill([3])
    assert (result.x[0], result.retries) == (3, 1)


async def test_startup_may_be_a_coroutine_function() -> None:
    """It runs on the loop, and so can open what belongs to the loop."""
    opened: list[Any] = []

    async def startup() -> None:
        await anyio.sleep(0)
        opened.append(asyncio.get_running_loop())

    async def load(item: int, arrays: Any, seed: int | None) -> None:
        assert opened == [asyncio.get_running_loop()]

    async with bench(load, "coroutines", startup=startup) as b:
        await b.fill(range(ROWS))
    assert len(opened) == 1


async def test_a_failed_fill_keeps_nothing_alive() -> None:
    """The error refers to nothing that refers to it, so that it ends with its last reference."""
    gate = Gate()
    gate.open.set()
    gc.collect()
    gc.disable()
    try:
        async with bench(gate, "coroutines", depth=1) as b:
            for _ in range(3):
                with pytest.raises(ItemError):
                    await b.fill(["bad"])
                await until(lambda: b.arena.on_loan == 0, seconds=2)
    finally:
        gc.enable()


# The swarm itself ---------------------------------------------------------------------------------


async def test_calls_are_shared_fairly_first_come_first_served() -> None:
    order: list[tuple[str, int]] = []

    async def call(name: str, number: int) -> None:
        order.append((name, number))
        await anyio.sleep(0)

    def calls(name: str) -> Calls:
        return Calls(call, ((n, (name, n)) for n in range(3)), lambda row, value: None)

    async with Swarm(1) as swarm, anyio.create_task_group() as group:
        for name in "abc":
            group.start_soon(swarm.run, calls(name))
    assert order == [(name, number) for name in "abc" for number in range(3)]


async def test_results_are_handed_over_as_they_come() -> None:
    """Those that are quick do not wait for those before them."""
    taken: list[Any] = []
    slow = anyio.Event()

    async def call(number: int) -> int:
        if number == 0:
            await slow.wait()
        return number * 10

    calls = Calls(
        call, ((n, (n,)) for n in range(3)), lambda row, value: taken.append((row, value))
    )
    async with Swarm(8) as swarm:
        running = asyncio.ensure_future(swarm.run(calls))
        await until(lambda: len(taken) == 2)
        assert taken == [(1, 10), (2, 20)]
        slow.set()
        await running
    assert taken[2] == (0, 0)


async def test_calls_begin_in_order_on_a_slow_machine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where some of them come just when others should have their turn."""
    begun: list[int] = []
    rng = random.Random(5)

    class Sometimes:
        def __lt__(self, seconds: float) -> bool:
            return rng.random() < 0.5

    monkeypatch.setattr(module, "_TURN_SECONDS", Sometimes())

    async def call(number: int) -> None:
        begun.append(number)
        await asyncio.sleep(0.001 * (number % 3))

    async with Swarm(4) as swarm:
        await swarm.run(Calls(call, ((n, (n,)) for n in range(40)), lambda row, value: None))
    assert begun == list(range(40))


async def test_tasks_are_kept_from_one_run_to_the_next() -> None:
    """To start one costs more than most of what is waited for."""
    tasks: set[Any] = set()

    async def call(number: int) -> None:
        tasks.add(asyncio.current_task())
        await asyncio.sleep(0)

    async with Swarm(4) as swarm:
        for _ in range(20):
            arguments = ((n, (n,)) for n in range(8))
            await swarm.run(Calls(call, arguments, lambda row, value: None))
    assert len(tasks) == 4
    assert swarm.running == 0


async def test_no_calls_are_done_at_once() -> None:
    async with Swarm(2) as swarm:
        with anyio.fail_after(10):
            await swarm.run(Calls(asyncio.sleep, iter(()), lambda row, value: None))
    assert swarm.running == 0


@both_loops
@settings(max_examples=40, deadline=None)
@given(
    limit=st.integers(1, 5),
    jobs=st.lists(st.lists(st.sampled_from(["", "", "", "x"]), max_size=7), max_size=6),
)
def test_every_call_is_made_once_or_not_at_all_and_the_first_error_is_raised(
    loop: str, limit: int, jobs: list[list[str]]
) -> None:
    run_on(loop, make_calls(limit, jobs))


async def make_calls(limit: int, jobs: list[list[str]]) -> None:
    made: list[tuple[int, int]] = []
    inside = 0

    async def call(job: int, row: int, fails: str) -> int:
        nonlocal inside
        made.append((job, row))
        inside += 1
        assert inside <= limit
        for _ in range((job * 7 + row * 5) % 4):
            await anyio.sleep(0)
        inside -= 1
        if fails:
            raise ValueError(row)
        return row

    async def run(swarm: Swarm, job: int, rows: list[str]) -> None:
        taken: list[int] = []
        arguments = ((row, (job, row, fails)) for row, fails in enumerate(rows))
        calls = Calls(call, arguments, lambda row, value: taken.append(row))
        failing = [row for row, fails in enumerate(rows) if fails]
        if failing:
            with pytest.raises(ItemError) as caught:
                await swarm.run(calls)
            assert caught.value.row == failing[0]
            assert set(range(failing[0])) <= set(taken)
        else:
            await swarm.run(calls)
            assert sorted(taken) == list(range(len(rows)))

    async with Swarm(limit) as swarm, anyio.create_task_group() as group:
        for job, rows in enumerate(jobs):
            group.start_soon(run, swarm, job, rows)
    assert len(made) == len(set(made))
    assert swarm.running == 0
