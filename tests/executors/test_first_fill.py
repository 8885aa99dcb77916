"""The first fill of threads: it goes ahead of what comes behind it, but holds nobody up."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from executor_bench import Bench, bench
from support import until

from aioloader.errors import ItemError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioloader._memory.arena import ArenaSlot

ITEMS = list(range(6))


@pytest.fixture
def _locks_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads may keep the lock from the loop for as long as a test takes."""
    monkeypatch.setattr(sys, "getswitchinterval", lambda: 60.0)


async def begun(b: Bench, items: list[Any], on_done: Callable[[], object]) -> tuple[ArenaSlot, Any]:
    """Begin to fill a slot."""
    slot = await b.arena.acquire(0, len(items))
    executor: Any = b.executor
    return slot, executor.begin_fill(slot, range(len(items)), items, [None] * len(items), on_done)


class Noting:
    """A load that notes its items, and waits for a door where it is asked to."""

    def __init__(self) -> None:
        self.loaded: list[Any] = []
        self.door = threading.Event()

    def __call__(self, item: Any, arrays: Any, seed: int | None) -> None:
        self.loaded.append(item)
        if item == "door":
            self.door.wait(30)
        if item == "bad":
            raise ValueError("a bad item")
        arrays["x"][...] = 0 if isinstance(item, str) else item


@pytest.mark.usefixtures("_locks_are_kept")
@pytest.mark.parametrize("num_workers", [0, 2])
async def test_when_it_is_done_nothing_else_has_been_begun(num_workers: int) -> None:
    """So that the loop has the lock then, to place what has come; and all the others follow."""
    load, seen = Noting(), []
    done = asyncio.Event()
    async with bench(load, "threads", num_workers=num_workers) as b:
        first, _ = await begun(b, ITEMS, lambda: seen.append(sorted(load.loaded)))
        second, _ = await begun(b, [7, 8], lambda: None)
        third, job = await begun(b, [9], done.set)
        await done.wait()
        assert third.arrays["x"][:1].tolist() == [9]
        assert job.result().retries == 0
        for slot in (first, second, third):
            slot.release()
    assert seen == [ITEMS]
    assert sorted(load.loaded) == [*ITEMS, 7, 8, 9]


async def test_others_wait_for_it_no_longer_than_threads_keep_the_lock() -> None:
    """An item that takes long, and another thread that has nothing to do."""
    load, done = Noting(), asyncio.Event()
    async with bench(load, "threads", num_workers=2) as b:
        first, _ = await begun(b, ["door"], lambda: None)
        second, _ = await begun(b, [1], done.set)
        await done.wait()
        assert load.loaded == ["door", 1]
        load.door.set()
        first.release()
        second.release()


@pytest.mark.usefixtures("_locks_are_kept")
async def test_where_it_fails_the_others_go_on() -> None:
    load = Noting()
    async with bench(load, "threads") as b:
        failing = asyncio.ensure_future(b.fill(["bad"]))
        behind = asyncio.ensure_future(b.fill([1, 2]))
        with pytest.raises(ItemError, match="a bad item"):
            await failing
        assert (await behind).x[:2] == [1, 2]


@pytest.mark.usefixtures("_locks_are_kept")
async def test_what_cannot_begin_behind_it_fails_and_the_others_go_on() -> None:
    """Whoever wants it waits elsewhere by then."""
    done = asyncio.Event()
    async with bench(Noting(), "threads") as b:
        first, _ = await begun(b, [0], lambda: None)
        failing, failed = await begun(b, [1], lambda: None)
        failing.release()
        last, _ = await begun(b, [2], done.set)
        await done.wait()
        with pytest.raises(ItemError, match="has been released"):
            failed.result()
        assert [slot.arrays["x"][0] for slot in (first, last)] == [0, 2]
        first.release()
        last.release()


@pytest.mark.usefixtures("_locks_are_kept")
async def test_when_it_is_cancelled_the_others_go_on() -> None:
    load = Noting()
    async with bench(load, "threads") as b:
        cancelled = asyncio.ensure_future(b.fill(["door", 3]))
        behind = asyncio.ensure_future(b.fill([1, 2]))
        await until(lambda: "door" in load.loaded)
        cancelled.cancel()
        load.door.set()
        assert (await behind).x[:2] == [1, 2]
        assert cancelled.cancelled()


@pytest.mark.usefixtures("_locks_are_kept")
async def test_what_is_cancelled_behind_it_is_never_begun() -> None:
    """Nor does it keep its slot."""
    load = Noting()
    async with bench(load, "threads") as b:
        first = asyncio.ensure_future(b.fill(["door"]))
        behind = asyncio.ensure_future(b.fill([1, 2]))
        last = asyncio.ensure_future(b.fill([5]))
        await until(lambda: load.loaded == ["door"] and b.arena.on_loan == 3)
        behind.cancel()
        await asyncio.wait([behind])
        assert b.arena.on_loan == 2
        load.door.set()
        await first
        assert (await last).x[:1] == [5]
    assert load.loaded == ["door", 5]


@pytest.mark.usefixtures("_locks_are_kept")
async def test_a_first_item_that_hangs_is_given_up_and_the_others_go_on() -> None:
    load = Noting()
    async with bench(load, "threads", num_workers=0, item_timeout=0.1) as b:
        hanging = asyncio.ensure_future(b.fill(["door"]))
        behind = asyncio.ensure_future(b.fill([1, 2]))
        with pytest.raises(ItemError, match=r"item_timeout=0\.1 s"):
            await hanging
        assert (await behind).x[:2] == [1, 2]
        load.door.set()


@pytest.mark.usefixtures("_locks_are_kept")
async def test_leaving_forgets_what_waits_behind_it() -> None:
    load = Noting()
    async with bench(load, "threads") as b:
        first, job = await begun(b, ["door"], lambda: None)
        second, waiting = await begun(b, [1], lambda: None)
        await until(lambda: load.loaded == ["door"])
        job.abandon()
        waiting.abandon()
        first.release()
        second.release()
        load.door.set()
    await until(lambda: b.arena.on_loan == 0)
    assert load.loaded == ["door"]
