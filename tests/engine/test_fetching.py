"""Fetching: payloads come on the loop, many at once, and are loaded as they come."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_bench import LAYOUTS, ROWS, Executor
from support import both_loops, run_on, until

from aioloader._engine import fetching
from aioloader._engine.fetching import Fetcher
from aioloader._memory.arena import Arena, ArenaSlot, slot_bytes
from aioloader._memory.segment import PrivateSegment
from aioloader.errors import ItemError
from aioloader.protocols import Filled


class Store:
    """A remote store, whose answers are sent when it is told so."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.inside = self.most = 0
        self.answers: dict[int, asyncio.Future[Any]] = {}

    async def fetch(self, item: int) -> Any:
        self.asked.append(item)
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.answers[item] = asyncio.get_running_loop().create_future()
        try:
            return await self.answers[item]
        finally:
            self.inside -= 1

    def send(self, *items: int) -> None:
        for item in items:
            self.answers[item].set_result(item * 10)

    def fail(self, item: int) -> None:
        self.answers[item].set_exception(ConnectionError(f"no {item}"))


async def at_once(item: int) -> int:
    return item * 10


def make_arena(depth: int = 4) -> Arena:
    segment = PrivateSegment(depth * slot_bytes(LAYOUTS))
    return Arena(segment, depth=depth, layouts=LAYOUTS, reclaim=lambda: None)


def fetcher(fetch: Any, executor: Any, **options: Any) -> Fetcher:
    settings = {"max_concurrency": 8, "retries": 0, "timeout": None, **options}
    return Fetcher(fetch, executor, **settings)


async def new_slot() -> ArenaSlot:
    return await make_arena().acquire(0, ROWS)


async def test_payloads_are_loaded_in_place_of_items() -> None:
    """Into the rows that were asked for, with their columns."""
    slot = await new_slot()
    slot.arrays["x"][...] = -1
    async with fetcher(at_once, Executor()) as f:
        fetched = await f.fill(slot, [0, 3], [7, 8], [None] * 2)
    assert slot.arrays["x"].tolist() == [70, -1, -1, 80]
    assert fetched.filled.extras == {"item": [70, 80]}


async def test_a_payload_is_loaded_as_soon_as_it_is_there() -> None:
    """Decoding overlaps with fetching; those that come together are loaded together."""
    store, executor, slot = Store(), Executor(), await new_slot()
    async with fetcher(store.fetch, executor) as f:
        filling = asyncio.ensure_future(f.fill(slot, range(4), [1, 2, 3, 4], [None] * 4))
        await until(lambda: len(store.asked) == 4)
        store.send(4, 2)
        await until(lambda: executor.filling == [[20, 40]])
        store.send(1)
        await until(lambda: executor.filling == [[20, 40], [10]])
        assert not filling.done()
        store.send(3)
        await filling
    assert slot.arrays["x"].tolist() == [10, 20, 30, 40]


async def test_fetches_of_all_batches_share_one_limit_earlier_batches_first() -> None:
    store, executor = Store(), Executor()
    arena = make_arena()
    slots = [await arena.acquire(0, ROWS) for _ in range(2)]
    async with fetcher(store.fetch, executor, max_concurrency=5) as f:
        filling = [
            asyncio.ensure_future(f.fill(slot, range(4), range(n, n + 4), [None] * 4))
            for slot, n in zip(slots, (0, 10), strict=True)
        ]
        await until(lambda: store.asked == [0, 1, 2, 3, 10])
        store.send(0, 1, 2, 3, 10)
        await until(lambda: store.inside == 3)
        store.send(11, 12, 13)
        await asyncio.gather(*filling)
    assert store.most == 5
    assert [slot.arrays["x"][0] for slot in slots] == [0, 100]


@pytest.mark.parametrize("rows", [range(4), [0, 1, 2, 3], [3, 1, 0, 2]])
async def test_a_failed_fetch_names_its_row(rows: Any) -> None:
    """It is the row of the batch, and not the place in the list."""
    store, slot = Store(), await new_slot()
    async with fetcher(store.fetch, Executor()) as f:
        filling = asyncio.ensure_future(f.fill(slot, rows, [1, 2, 3, 4], [None] * 4))
        await until(lambda: len(store.asked) == 4)
        store.send(1, 2, 4)
        store.fail(3)
        with pytest.raises(ItemError, match="ConnectionError: no 3") as caught:
            await filling
    assert caught.value.row == rows[2]
    assert isinstance(caught.value.__cause__, ConnectionError)


async def test_the_lowest_row_is_named_whether_it_was_fetched_or_loaded_in_vain() -> None:
    store, executor, slot = Store(), Executor(), await new_slot()
    executor.fails = {20}
    async with fetcher(store.fetch, executor) as f:
        filling = asyncio.ensure_future(f.fill(slot, range(4), [1, 2, 3, 4], [None] * 4))
        await until(lambda: len(store.asked) == 4)
        store.send(1, 4)
        store.fail(3)
        store.send(2)
        with pytest.raises(ItemError, match="bad item 20") as caught:
            await filling
    assert caught.value.row == 1


async def test_fetches_are_tried_again_and_counted() -> None:
    tries: list[int] = []

    async def flaky(item: int) -> int:
        tries.append(item)
        if item == 2 and tries.count(2) < 3:
            raise ConnectionError
        return item

    slot = await new_slot()
    async with fetcher(flaky, Executor(), retries=2) as f:
        fetched = await f.fill(slot, range(4), range(4), [None] * 4)
    assert fetched.retries == 2
    assert slot.arrays["x"].tolist() == [0, 1, 2, 3]


async def test_a_fetch_that_takes_too_long_is_an_error() -> None:
    store, slot = Store(), await new_slot()
    async with fetcher(store.fetch, Executor(), timeout=0.05) as f:
        with pytest.raises(ItemError, match=r"0\.05 s") as caught:
            await f.fill(slot, [2], [5], [None])
    assert caught.value.row == 2
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert store.inside == 0


async def test_a_cancelled_fill_stops_fetching_and_loading() -> None:
    store, executor, slot = Store(), Executor(), await new_slot()
    executor.go.clear()
    async with fetcher(store.fetch, executor, max_concurrency=2) as f:
        filling = asyncio.ensure_future(f.fill(slot, range(4), range(4), [None] * 4))
        await until(lambda: store.asked == [0, 1])
        store.send(0)
        await until(lambda: executor.filling == [[0]])
        filling.cancel()
        await asyncio.wait([filling])
        assert filling.cancelled()
        assert executor.cancelled == 1
        await asyncio.sleep(0.01)
        assert len(store.asked) <= 3
    assert store.inside == 0


async def test_leaving_ends_fetches_that_are_under_way() -> None:
    store, slot = Store(), await new_slot()
    async with fetcher(store.fetch, Executor()) as f:
        filling = asyncio.ensure_future(f.fill(slot, range(4), range(4), [None] * 4))
        await until(lambda: store.inside == 4)
        filling.cancel()
        await asyncio.wait([filling])
    assert store.inside == 0


async def test_errors_are_not_wrapped_in_groups() -> None:
    """What the executor raises, whatever it is, comes as it is."""

    class Broken(Executor):
        async def fill(self, *args: Any) -> Any:
            raise OSError("no executor")

    slot = await new_slot()
    async with fetcher(at_once, Broken()) as f:
        with pytest.raises(OSError, match="no executor"):
            await f.fill(slot, range(4), range(4), [None] * 4)


@both_loops
@settings(max_examples=30, deadline=None)
@given(
    delays=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=ROWS), max_size=6),
    failing=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=3),
    limit=st.integers(1, 6),
)
def test_every_row_is_fetched_and_loaded_or_the_first_failure_is_raised(
    loop: str, delays: list[list[int]], failing: set[tuple[int, int]], limit: int
) -> None:
    inside = 0

    async def fetch(item: tuple[int, int]) -> int:
        nonlocal inside
        inside += 1
        assert inside <= limit
        for _ in range(delays[item[0]][item[1]]):
            await anyio.sleep(0)
        inside -= 1
        if item in failing:
            raise ConnectionError(item)
        return item[0] * 10 + item[1]

    async def one(f: Fetcher, arena: Arena, batch: int) -> None:
        count = len(delays[batch])
        slot = await arena.acquire(0, count)
        filling = f.fill(slot, range(count), [(batch, n) for n in range(count)], [None] * count)
        bad = [row for b, row in sorted(failing) if b == batch and row < count]
        if bad:
            with pytest.raises(ItemError) as caught:
                await filling
            assert caught.value.row == bad[0]
        else:
            fetched = await filling
            expected = [batch * 10 + n for n in range(count)]
            assert slot.arrays["x"].tolist() == expected
            assert fetched.filled.extras == {"item": expected}

    async def main() -> None:
        arena = make_arena(len(delays) + 1)
        f = fetcher(fetch, Executor(), max_concurrency=limit)
        async with f, anyio.create_task_group() as group:
            for batch in range(len(delays)):
                group.start_soon(one, f, arena, batch)

    run_on(loop, main())


async def timed_fill(seconds: float) -> list[list[Any]]:
    """Fill a batch of one row, which takes so long to load, and then one whose rows trickle in."""

    class Timed(Executor):
        async def fill(self, slot: Any, rows: Any, items: Any, seeds: Any) -> Any:
            filled = await super().fill(slot, rows, items, seeds)
            return Filled(filled.extras, seconds * len(rows), 0)

    store, executor = Store(), Timed()
    async with fetcher(store.fetch, executor) as f:
        for items in ([9], [1, 2, 3, 4]):
            filling = asyncio.ensure_future(
                f.fill(await new_slot(), range(len(items)), items, [None] * len(items))
            )
            await until(lambda items=items: set(items) <= set(store.asked))
            for item in items:
                store.send(item)
                for _ in range(3):
                    await asyncio.sleep(0)
            await filling
    return executor.filling[1:]


async def test_rows_that_are_quick_to_load_are_handed_on_together(monkeypatch: Any) -> None:
    """Each hand-over costs more than they do; and the last of a batch waits for nobody."""
    monkeypatch.setattr(fetching, "_GATHER_SECONDS", 30.0)
    assert await timed_fill(1e-5) == [[10, 20, 30, 40]]
    assert await timed_fill(1e-2) == [[10], [20], [30], [40]]
