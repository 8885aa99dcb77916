"""Threads: off the loop, one unless more are asked for, let go of when they do not come back."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any

import anyio
import pytest
from executor_bench import ROWS, bench
from support import until

from aioloader.errors import ItemError


class Doors:
    """A load that waits at a door for some items, until somebody opens it."""

    def __init__(self) -> None:
        self.arrived: list[Any] = []
        self.threads: set[str] = set()
        self.door = threading.Event()

    def __call__(self, item: Any, arrays: Any, seed: int | None) -> None:
        self.threads.add(threading.current_thread().name)
        self.arrived.append(item)
        if item == "door":
            self.door.wait(30)
        arrays["x"][...] = 0 if isinstance(item, str) else item


async def test_items_are_loaded_in_one_thread_and_not_on_the_loop() -> None:
    """What is not safe to call from several threads is safe here."""
    seen: set[int] = set()

    def load(item: int, arrays: Any, seed: int | None) -> None:
        seen.add(threading.get_ident())
        arrays["x"][...] = item

    async with bench(load, "threads", num_workers=0) as b:
        await asyncio.gather(*(b.fill(range(ROWS)) for _ in range(10)))
    assert len(seen) == 1
    assert threading.get_ident() not in seen


async def test_the_loop_goes_on_meanwhile() -> None:
    load = Doors()
    async with bench(load, "threads", num_workers=0) as b:
        filling = asyncio.ensure_future(b.fill([1, "door", 2]))
        await until(lambda: "door" in load.arrived)
        load.door.set()
        assert (await filling).x[:3] == [1, 0, 2]


async def test_fills_are_taken_in_the_order_in_which_they_came() -> None:
    load = Doors()
    async with bench(load, "threads", num_workers=0) as b:
        await asyncio.gather(*(b.fill([n, n]) for n in range(5)))
    assert load.arrived == [n for n in range(5) for _ in range(2)]


async def test_rows_of_a_cancelled_fill_are_not_begun() -> None:
    """The one under way is finished, since nothing can stop it; the rest is left."""
    load = Doors()
    async with bench(load, "threads", num_workers=0) as b:
        filling = asyncio.ensure_future(b.fill(["door", 1, 2]))
        await until(lambda: load.arrived == ["door"])
        waiting = asyncio.ensure_future(b.fill([3, 4]))
        await asyncio.sleep(0)
        for task in (filling, waiting):
            task.cancel()
        await asyncio.wait([filling, waiting])
        load.door.set()
        assert (await b.fill([5])).x[0] == 5
    assert load.arrived == ["door", 5]


async def test_what_hangs_gets_a_new_thread_in_its_place() -> None:
    """Also the fills that stood behind it in the queue; and the old thread writes nowhere else."""
    load = Doors()
    async with bench(load, "threads", num_workers=0, item_timeout=0.1) as b:
        hanging = asyncio.ensure_future(b.fill(["door", 1, 2]))
        await until(lambda: "door" in load.arrived)
        behind = asyncio.ensure_future(b.fill([3, 4]))
        with pytest.raises(ItemError, match=r"item_timeout=0\.1 s") as caught:
            await hanging
        assert caught.value.row == 0
        try:
            with anyio.fail_after(2):
                assert (await behind).x[:2] == [3, 4]
                assert (await b.fill([5])).x[0] == 5
            assert len(load.threads) == 1  # of one name, though not one thread
        finally:
            load.door.set()
        await until(lambda: threading.active_count() < 10)
        assert 1 not in load.arrived


async def test_the_slot_of_a_hanging_item_stays_on_loan() -> None:
    """The thread may write to it for as long as it hangs, whatever has become of the fill."""
    load = Doors()
    async with bench(load, "threads", item_timeout=0.1, depth=2) as b:
        with pytest.raises(ItemError):
            await b.fill(["door"])
        for _ in range(3):
            assert (await b.fill([5])).x[0] == 5
        await until(lambda: b.arena.on_loan == 1)
        assert (await b.fill([5])).x[0] == 5
        load.door.set()
        await until(lambda: b.arena.on_loan == 0)


async def test_leaving_does_not_wait_for_an_item_that_hangs() -> None:
    load = Doors()
    async with bench(load, "threads") as b:
        filling = asyncio.ensure_future(b.fill(["door"]))
        await until(lambda: "door" in load.arrived)
        filling.cancel()
        await asyncio.wait([filling])
        started = time.monotonic()
    assert time.monotonic() - started < 1
    load.door.set()


async def test_leaving_waits_for_a_thread_that_is_about_to_end() -> None:
    """So that nothing is left when it has been left."""
    before = threading.active_count()
    async with bench(Doors(), "threads", num_workers=0) as b:
        await b.fill(range(ROWS))
        assert threading.active_count() == before + 1
    assert threading.active_count() <= before + 1
    await until(lambda: threading.active_count() == before)


async def test_the_thread_is_a_daemon() -> None:
    """It must not keep the program from ending."""
    async with bench(Doors(), "threads") as b:
        await b.fill([1])
        threads = [t for t in threading.enumerate() if t.name.startswith("aioloader-load")]
        assert threads
        assert all(thread.daemon for thread in threads)


# Several ------------------------------------------------------------------------------------------


async def test_several_threads_share_a_fill() -> None:
    """Two items that wait for each other are loaded by two threads, of one fill or of two."""
    both = threading.Barrier(2)

    def load(item: int, arrays: Any, seed: int | None) -> None:
        if item:
            both.wait(30)
        arrays["x"][...] = item

    async with bench(load, "threads", num_workers=2) as b:
        assert (await b.fill([1, 0, 0, 0, 2, 0, 0, 0])).x == [1, 0, 0, 0, 2, 0, 0, 0]
        one, two = await asyncio.gather(b.fill([3]), b.fill([4]))
        assert (one.x[0], two.x[0]) == (3, 4)


async def test_there_are_as_many_threads_as_workers() -> None:
    before = threading.active_count()
    async with bench(Doors(), "threads", num_workers=5) as b:
        await b.fill(range(ROWS))
        assert threading.active_count() == before + 5
    await until(lambda: threading.active_count() == before)


async def test_the_first_error_in_order_is_raised_whichever_came_first() -> None:
    failed = threading.Event()

    def load(item: int, arrays: Any, seed: int | None) -> None:
        if item == 1:
            failed.wait(30)
        try:
            if item:
                raise ValueError(f"item {item}")
        finally:
            if item == 2:
                failed.set()

    async with bench(load, "threads", num_workers=2) as b:
        with pytest.raises(ItemError, match="item 1") as caught:
            await b.fill([0, 1, 0, 0, 0, 0, 2, 0])
        assert caught.value.row == 1


async def test_one_that_hangs_costs_the_others_nothing() -> None:
    """Its rows fail, and the other thread goes on with what it was at."""
    load = Doors()
    async with bench(load, "threads", num_workers=2, item_timeout=0.2) as b:
        hanging = asyncio.ensure_future(b.fill(["door"]))
        await until(lambda: "door" in load.arrived)
        for _ in range(20):
            assert (await b.fill([5, 6])).x[:2] == [5, 6]
        with pytest.raises(ItemError, match=r"item_timeout=0\.2 s"):
            await hanging
        before = threading.active_count()
        load.door.set()
        await until(lambda: threading.active_count() == before - 1)
        assert (await b.fill([7])).x[0] == 7


async def test_a_thread_that_cannot_be_started_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With what may forbid it; those that have been started end."""
    before, count, start = threading.active_count(), 0, threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        nonlocal count
        count += 1
        if count > 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match=r"a thread for loading cannot be started"):
        async with bench(Doors(), "threads", num_workers=3):
            pass
    monkeypatch.undo()
    await until(lambda: threading.active_count() == before)


async def test_where_no_other_thread_can_be_started_the_late_one_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The item that was too slow has failed in any case, and nothing waits for ever."""
    load = Doors()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with bench(load, "threads", num_workers=0, item_timeout=0.1) as b:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ItemError, match="item_timeout"):
            await b.fill(["door", 1])
        behind = asyncio.ensure_future(b.fill([2]))
        await asyncio.sleep(0)
        load.door.set()
        assert (await behind).x[0] == 2
        monkeypatch.undo()
    assert load.arrived == ["door", 2]


async def test_no_chunk_stays_pending_whoever_ends_the_last_of_a_fill() -> None:
    """Also where threads take turns after each few instructions."""

    def load(item: int, arrays: Any, seed: int | None) -> None:
        time.sleep(0.2e-3)  # long enough for each thread to get some of them
        arrays["x"][...] = item

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        async with bench(load, "threads", num_workers=4) as b:
            for n in range(300):
                assert (await b.fill([n] * ROWS)).x == [n] * ROWS
            assert "0 chunks pending" in repr(b.executor)
    finally:
        sys.setswitchinterval(interval)
