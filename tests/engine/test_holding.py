"""Holding: payloads are bounded by their bytes, however slow those are who load them."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_bench import LAYOUTS, ROWS, Executor
from support import until

from aioloader import Fetch, FetchPolicy
from aioloader._engine.fetching import Fetcher
from aioloader._engine.holding import Held
from aioloader._memory.arena import Arena, slot_bytes
from aioloader._memory.segment import PrivateSegment
from aioloader.errors import ItemError


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def make_arena(depth: int = 4) -> Arena:
    segment = PrivateSegment(depth * slot_bytes(LAYOUTS))
    return Arena(segment, depth=depth, layouts=LAYOUTS, reclaim=lambda: None)


def fetcher(fetch: Any, executor: Any, **options: Any) -> Fetcher:
    return Fetcher(
        fetch, executor, **{"max_concurrency": 8, "retries": 0, "timeout": 0.01, **options}
    )


@settings(max_examples=60, deadline=None)
@given(
    most=st.integers(1, 2000),
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=40),
    same=st.booleans(),
    cancelled=st.sets(st.integers(0, 39), max_size=6),
    seed=st.integers(0, 1000),
)
def test_what_is_held_stays_in_bounds_and_nobody_waits_for_ever(
    most: int, sizes: list[int], same: bool, cancelled: set[int], seed: int
) -> None:
    """With payloads of one size there is at most one too many; whatever is cancelled meanwhile."""
    rng = random.Random(seed)
    held = Held(most)
    waiting: list[int] = []
    size = sizes[0]

    async def fetch(item: int) -> int:
        await turns(rng.randrange(4))
        return size if same else sizes[item]

    bounded = held.around(fetch)

    async def one(item: int) -> None:
        nbytes = await bounded(item)
        held.keep(nbytes)
        waiting.append(nbytes)
        if same:
            assert held.nbytes <= max(most, size) + size

    async def main() -> None:
        tasks = [asyncio.ensure_future(one(item)) for item in range(len(sizes))]
        while not all(task.done() for task in tasks):
            await turns(rng.randrange(4))
            if cancelled:
                number = cancelled.pop()
                if number < len(tasks):
                    tasks[number].cancel()
            if waiting and (rng.random() < 0.5 or held.nbytes >= most):
                held.give_back(waiting.pop())
            elif not waiting:
                await asyncio.sleep(0)
            else:
                held.give_back(waiting.pop(0))
        assert all(task.cancelled() or task.exception() is None for task in tasks)
        for nbytes in waiting:
            held.give_back(nbytes)
        assert (held.nbytes, held._pending, len(held._line)) == (0, 0, 0)

    asyncio.run(main())


@pytest.mark.parametrize("cancelled_first", [False, True])
async def test_a_turn_in_the_moment_of_a_cancellation_is_passed_on(cancelled_first: bool) -> None:
    held = Held(10)
    held.keep(10)

    async def fetch(item: int) -> int:
        return item

    bounded = held.around(fetch)
    first, second = (asyncio.ensure_future(bounded(n)) for n in (1, 2))
    await turns(2)
    for step in (first.cancel, lambda: held.give_back(10))[:: 1 if cancelled_first else -1]:
        step()
    await asyncio.wait([first, second])
    assert first.cancelled()
    assert second.result() == 2
    assert held._pending == 0


async def test_payloads_of_unknown_size_begin_with_a_few() -> None:
    """A hundred of a gigabyte each would not fit; the first one tells."""
    held = Held(16 * 1024 * 1024)
    begun: list[int] = []
    go = asyncio.Event()

    async def fetch(item: int) -> int:
        begun.append(item)
        await go.wait()
        return item

    bounded = held.around(fetch)
    tasks = [asyncio.ensure_future(bounded(n)) for n in range(100)]
    await turns(3)
    assert len(begun) == 16
    held.keep(1024)
    go.set()
    await asyncio.gather(*tasks)
    assert len(begun) == 100


async def test_slow_loading_holds_fetching_back() -> None:
    """Bytes count from the answer until they are in their slots."""
    inside = most = 0

    async def fetch(item: int) -> bytes:
        nonlocal inside, most
        inside += 100
        most = max(most, inside)
        await asyncio.sleep(0)
        return bytes(100)

    class Slow(Executor):
        async def fill(self, slot: Any, rows: Any, items: Any, seeds: Any) -> Any:
            nonlocal inside
            await (turns(20) if self.filling else asyncio.sleep(0.03))
            filled = await super().fill(slot, rows, [0] * len(rows), seeds)
            inside -= 100 * len(rows)
            return filled

    arena = make_arena(8)
    policy = FetchPolicy(concurrency=64, max_bytes=500)
    # The loader's own time limit would count the wait for room: a policy has its own.
    async with fetcher(Fetch(fetch, policy, name=str), Slow()) as f:
        slots = [await arena.acquire(0, ROWS) for _ in range(8)]
        filling = [
            f.fill(slot, range(ROWS), range(n * ROWS, (n + 1) * ROWS), [None] * ROWS)
            for n, slot in enumerate(slots)
        ]
        await asyncio.gather(*filling)
        assert f._held is not None
        assert f._held.nbytes == 0
    assert 300 <= most <= 600


@pytest.mark.parametrize("how", ["failed fetch", "failed load", "cancelled"])
async def test_a_batch_that_fails_gives_all_back(how: str) -> None:
    executor = Executor()
    executor.go.clear()
    if how == "failed load":
        executor.fails = {0}

    async def fetch(item: int) -> Any:
        if how == "failed fetch" and item == 3:
            raise ValueError("no")
        return bytes(100) if how != "failed load" or item else 0

    async with fetcher(Fetch(fetch, FetchPolicy(max_bytes=10_000)), executor) as f:
        slot = await make_arena().acquire(0, ROWS)
        filling = asyncio.ensure_future(f.fill(slot, range(4), range(4), [None] * 4))
        await until(lambda: executor.filling)
        if how == "cancelled":
            filling.cancel()
        executor.go.set()
        await asyncio.wait([filling])
        assert filling.cancelled() or isinstance(
            filling.exception(), (ItemError, TypeError, ValueError)
        )
        assert f._held is not None
        assert (f._held.nbytes, f._held._pending) == (0, 0)
