"""Preloading: bounded, out of the way, and ended with its owner."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from typing import Any

import pytest
from providers import CONFIG, PRELOADING, AsyncProvider, Provider, number
from support import until

from aioloader import DataCache

KINDS = pytest.mark.parametrize("kind", [Provider, AsyncProvider])


async def turns(count: int = 50) -> None:
    """Let everything happen that can happen now."""
    for _ in range(count):
        await asyncio.sleep(0)


def entry_bytes() -> int:
    cache = DataCache(CONFIG, Provider(1))
    cache[0]
    return cache._data_size_bytes


@KINDS
async def test_every_row_is_preloaded_once(kind: Any) -> None:
    """As many at once as there are workers, and then every fetch is a hit."""
    provider = kind(200)
    async with DataCache(PRELOADING, provider, max_preload_workers=3) as cache:
        progress = await cache.preload()
        assert (progress.state, progress.kept, progress.total) == ("done", 200, 200)
        assert sorted(provider.asked) == list(range(200))
        assert provider.most_at_once <= 3
        for index in range(200):
            assert number(await cache.get_or_load(index)) == index
        now = cache.statistics()
        assert (now.hit_rate, now.inserts, now.refusals) == (1.0, 200, 0)
        again = await cache.preload()
        assert (again.state, again.present, again.kept) == ("done", 200, 0)


@KINDS
@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_slow_head_holds_nothing_up(kind: Any, in_thread: bool) -> None:
    """Rows that are done are kept at once, so that nothing piles up behind it."""
    provider = kind(60)
    door = provider.shut_row(0)
    cache = DataCache(PRELOADING, provider, max_preload_workers=3)
    if in_thread:
        cache.start_preload_thread()
    else:
        await cache.__aenter__()
    await until(lambda: cache.statistics().items == 59)
    assert provider.most_at_once <= 3
    assert cache.statistics().preload.state == "running"
    door.set()
    assert (await cache.preload()).kept == 60
    if not in_thread:
        await cache.__aexit__(None, None, None)
    cache.close()


@KINDS
@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("policy", ["lru", "fifo", "none"])
async def test_preloading_stops_when_there_is_no_room(
    kind: Any, in_thread: bool, policy: Any
) -> None:
    """With the first row stuck, too: nothing is evicted, and few loads are in vain."""
    provider = kind(1000)
    door = provider.shut_row(0)
    bound = 20 * entry_bytes() + 100
    cache = DataCache(PRELOADING, provider, max_bytes=bound, policy=policy, max_preload_workers=4)
    if in_thread:
        cache.start_preload_thread()
    else:
        await cache.__aenter__()
    await until(lambda: cache.statistics().preload.state == "full")
    await until(lambda: provider.at_once == 1)  # the stuck one
    now = cache.statistics()
    assert (now.items, now.evictions) == (20, 0)
    assert now.bytes <= bound
    assert len(provider.asked) <= 20 + 4
    door.set()
    progress = await cache.preload()
    assert (progress.state, progress.kept) == ("full", 20)
    assert 1 <= progress.refused <= 4
    if not in_thread:
        await cache.__aexit__(None, None, None)
    cache.close()


async def test_a_row_that_can_never_fit_does_not_end_it() -> None:
    """It is refused, and the others are kept."""

    class Uneven(Provider):
        def end(self, index: int) -> Any:
            row = super().end(index)
            return bytes(100_000) if index == 2 else row

    cache = DataCache(CONFIG, Uneven(10), max_bytes=20 * entry_bytes())
    progress = await cache.preload()
    assert (progress.state, progress.kept, progress.refused) == ("done", 9, 1)


@KINDS
async def test_bad_rows_are_passed_over_and_told_of_at_the_end(kind: Any, caplog: Any) -> None:
    """The first error is raised, with how many there were; the rest is kept."""
    provider = kind(50)
    for index in (7, 11, 30):
        provider.failing[index] = ValueError(f"bad row {index}")
    async with DataCache(PRELOADING, provider, max_preload_workers=1) as cache:
        await until(lambda: cache.statistics().preload.state == "done")
        with pytest.raises(ValueError, match="bad row 7") as caught:
            await cache.preload()
        now = cache.statistics()
    assert caught.value.__notes__ == ["3 of 50 rows could not be preloaded: 7, 11, 30"]
    assert (now.items, now.failures, now.preload.failed) == (47, 3, 3)
    assert now.preload.failed_rows == (7, 11, 30)
    assert "row 11 could not be preloaded: ValueError('bad row 11')" in caplog.text


@KINDS
@pytest.mark.parametrize("in_thread", [False, True])
async def test_demand_comes_first(kind: Any, in_thread: bool) -> None:
    """While somebody waits for a row, no other is begun."""
    provider = kind(20)
    first, wanted = provider.shut_row(0), provider.shut_row(15)
    cache = DataCache(PRELOADING, provider, max_preload_workers=1)
    if in_thread:
        cache.start_preload_thread()
    else:
        await cache.__aenter__()
    await until(lambda: provider.asked == [0])
    demand = asyncio.create_task(cache.get_or_load(15))
    await until(lambda: provider.asked == [0, 15])
    first.set()
    await until(lambda: cache.statistics().preload.kept == 1)
    await turns()
    assert provider.asked == [0, 15]
    wanted.set()
    assert number(await demand) == 15
    progress = await cache.preload()
    assert (progress.kept, progress.present) == (19, 1)
    if not in_thread:
        await cache.__aexit__(None, None, None)
    cache.close()


@KINDS
async def test_leaving_ends_it(kind: Any) -> None:
    """With rows under way, which are cancelled, or let go where they are in threads."""
    provider = kind(50)
    doors = [provider.shut_row(index) for index in range(50)]
    async with DataCache(PRELOADING, provider, max_preload_workers=3) as cache:
        await until(lambda: len(provider.asked) == 3)
    assert cache.statistics().preload.state == "stopped"
    for door in doors:
        door.set()
    await until(lambda: cache.statistics().loading == 0)
    assert sorted(provider.asked) == [0, 1, 2]
    if kind is AsyncProvider:
        assert sorted(provider.cancelled) == [0, 1, 2]
    async with cache:  # it can be entered again, and goes on
        assert (await cache.preload()).state == "done"


async def test_cancelling_who_waits_for_it_does_not_end_it() -> None:
    """It belongs to the cache; but where it was begun by `preload`, to the caller."""
    provider = AsyncProvider(10)
    door = provider.shut_row(0)
    async with DataCache(PRELOADING, provider) as cache:
        waiting = asyncio.create_task(cache.preload())
        await until(lambda: cache.statistics().items == 9)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert cache.statistics().preload.state == "running"
        door.set()
        assert (await cache.preload()).kept == 10
    provider = AsyncProvider(10)
    provider.shut_row(0)
    cache = DataCache(CONFIG, provider)
    alone = asyncio.create_task(cache.preload())
    await until(lambda: cache.statistics().items == 9)
    alone.cancel()
    await asyncio.wait([alone])
    assert cache.statistics().preload.state == "stopped"
    await until(lambda: provider.cancelled == [0])


async def test_a_cache_is_entered_once() -> None:
    """Not twice at the same time."""
    async with DataCache(CONFIG, Provider(3)) as cache:
        with pytest.raises(RuntimeError, match="entered already"):
            await cache.__aenter__()


@KINDS
def test_the_thread_ends_with_its_rows_or_when_it_is_closed(kind: Any) -> None:
    """It is a daemon, and is started once."""
    provider = kind(30)
    cache = DataCache(PRELOADING, provider)
    cache.start_preload_thread()
    thread = cache._preload_thread
    assert thread is not None
    assert thread.daemon
    cache.start_preload_thread()
    thread.join()
    assert cache._insert_count == 30
    assert sorted(provider.asked) == list(range(30))

    provider = kind(30)
    door = provider.shut_row(0)
    cache = DataCache(PRELOADING, provider, max_preload_workers=1)
    cache.start_preload_thread()
    thread = cache._preload_thread
    assert thread is not None
    cache.close()
    door.set()
    thread.join()
    assert cache.statistics().preload.state == "stopped"
    assert len(provider.asked) <= 1
    cache.close()


@KINDS
@pytest.mark.parametrize("circular", [False, True])
def test_the_thread_ends_when_the_cache_is_collected(kind: Any, circular: bool) -> None:
    """Also where the provider has the cache, as hyrax's does, and where a row has raised."""
    provider = kind(10_000)
    provider.failing[3] = ValueError("bad row")
    door = provider.shut_row(5)
    cache = DataCache(PRELOADING, provider, max_preload_workers=1)
    if circular:
        provider.cache = cache
    cache.start_preload_thread()
    thread, run, gone = cache._preload_thread, cache._run, weakref.ref(cache)
    assert thread is not None
    assert run is not None
    asked = provider.asked
    while 5 not in asked:
        thread.join(0.001)
    with run._lock:  # here the thread stops between two rows; while it loads, it has the provider
        del cache, provider
        door.set()
        while gone() is not None:
            gc.collect()
            thread.join(0.001)
    thread.join()
    assert asked == list(range(6))
    assert run.progress.state == "stopped"


async def test_a_consumer_that_never_pauses_does_not_stop_it() -> None:
    """It gives way to those who wait already, and not to those who come later."""
    provider = AsyncProvider(60)
    async with DataCache(PRELOADING, provider, max_preload_workers=4) as cache:
        for index in range(60):
            await cache.get_or_load(index)
        now = cache.statistics()
    assert now.hits > 20
    assert len(provider.asked) == 60


async def test_progress_is_logged(caplog: Any) -> None:
    """Every so many rows, and at the end."""
    caplog.set_level(logging.INFO, "aioloader.cache")
    cache = DataCache(CONFIG, Provider(20), logging_interval=5)
    await cache.preload()
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("preloading: ") for line in lines) == 4
    assert "kept=10" in lines[1]
    assert lines[-1].startswith("preloading ended: ")


def test_preload_threads_are_named_and_few() -> None:
    """As many as there are workers."""
    provider = Provider(50)
    doors = [provider.shut_row(index) for index in range(50)]
    cache = DataCache(PRELOADING, provider, max_preload_workers=3)
    cache.start_preload_thread()
    while len(provider.asked) < 3:
        threading.Event().wait(0.001)
    names = sorted(t.name for t in threading.enumerate() if t.name.startswith("aioloader-preload"))
    assert names == ["aioloader-preload-0", "aioloader-preload-1", "aioloader-preload-2"]
    for door in doors:
        door.set()
    assert cache._preload_thread is not None
    cache._preload_thread.join()
