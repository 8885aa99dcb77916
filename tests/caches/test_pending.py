"""Writes under way: bounded, waited for, given up when they have to be, and holding no longer."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from disk_bench import (
    ROWS,
    batch,
    disk_cache,
    extras,
    is_right,
    key,
    opened,
    path_of,
    unfinished,
)
from support import until

from aioloader._caches.directory import Directory

if TYPE_CHECKING:
    from pathlib import Path


async def test_what_is_held_is_held_until_it_is_written(tmp_path: Path) -> None:
    """And no longer: the slot of a batch goes back as soon as its bytes are in the file."""

    class Hold:
        pass

    started, go_on = threading.Event(), threading.Event()

    def slow() -> Any:
        started.set()
        assert go_on.wait(20)
        return batch(key())["label"]

    async with opened(tmp_path) as cache:
        hold, array = Hold(), np.zeros((ROWS, 50, 31), "uint8")
        gone, array_gone = weakref.ref(hold), weakref.ref(array)
        arrays = {"image": array, "weight": batch(key())["weight"], "label": slow}
        written = cache.write(key(), arrays, {}, hold)
        del hold, array, arrays
        await asyncio.to_thread(started.wait, 20)
        gc.collect()
        assert gone() is not None
        assert cache.pending == 1
        go_on.set()
        await written
        assert (gone(), array_gone()) == (None, None)
        assert cache.pending == 0
        bad = np.zeros(3)
        gone = weakref.ref(bad)
        failed = cache.write(key(1), {"image": bad}, {}, None)
        del bad
        await failed
        assert gone() is None
        assert cache.counts.failed == 1


async def test_writes_are_bounded_and_a_key_is_written_once_at_a_time(tmp_path: Path) -> None:
    """`room` waits while there are more of them than twice ``cachers``."""
    go_on = threading.Event()

    def slow() -> Any:
        assert go_on.wait(20)
        return batch(key())["label"]

    arrays = {**batch(key()), "label": slow}
    async with opened(tmp_path, cachers=2) as cache:
        await cache.room()
        for index in range(4):
            cache.write(key(index), arrays, {}, None)
            await cache.room()
        assert cache.write(key(0), arrays, {}, None) is cache.write(key(0), arrays, {}, None)
        assert cache.pending == 4
        cache.write(key(4), arrays, {}, None)
        waiting = asyncio.ensure_future(cache.room())
        flushing = asyncio.ensure_future(cache.flush())
        await asyncio.sleep(0)
        assert not waiting.done()
        go_on.set()
        await waiting
        assert cache.pending <= 4
        await flushing
        assert (cache.pending, cache.counts.written) == (0, 5)


async def test_a_read_waits_for_the_write_of_the_same_entry(tmp_path: Path) -> None:
    """So a batch that comes again at once is not loaded again."""
    async with opened(tmp_path) as cache:
        cache.write(key(), batch(key()), extras(key()), None)
        found = await cache.read(key())
        assert found is not None
        assert is_right(found, key())


async def test_closing_waits_for_writes(tmp_path: Path) -> None:
    """And a cache may be opened again afterwards."""
    cache = disk_cache(tmp_path)
    for index in range(3):
        await cache.open()
        cache.write(key(index), batch(key(index)), extras(key(index)), None)
        await cache.aclose()
        await cache.aclose()
        assert cache.counts.written == index + 1
    await cache.open()
    assert [await cache.read(key(index)) is not None for index in range(4)] == [True] * 3 + [False]
    await cache.aclose()


@pytest.mark.parametrize("how", ["task", "runner"])
async def test_closing_that_is_cancelled_leaves_no_file(tmp_path: Path, how: str) -> None:
    """What has not been written by then never will be, and holds nothing."""
    started, go_on = threading.Event(), threading.Event()

    class Hold:
        pass

    def slow() -> Any:
        started.set()
        assert go_on.wait(20)
        return batch(key())["label"]

    hold = Hold()
    gone = weakref.ref(hold)
    cache = disk_cache(tmp_path, cachers=1)
    await cache.open()
    for index in range(3):
        cache.write(key(index), {**batch(key()), "label": slow}, {}, hold)
    del hold
    await asyncio.to_thread(started.wait, 20)
    if how == "runner":  # as `asyncio.run` does with all tasks when its main one has ended
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
    closing = asyncio.ensure_future(cache.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    go_on.set()
    await asyncio.wait([closing])
    assert cache.pending == 0
    assert unfinished(tmp_path) == []
    assert gone() is None
    assert not path_of(tmp_path, key(2)).exists()


async def test_threads_that_write_leave_the_core_to_the_loop(tmp_path: Path) -> None:
    """They are nicer than the program, and the program is as it was."""
    before, seen = os.getpriority(os.PRIO_PROCESS, 0), []

    def label() -> Any:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return batch(key())["label"]

    async with opened(tmp_path) as cache:
        await cache.write(key(), {**batch(key()), "label": label}, {}, None)
        assert cache.counts.written == 1
    assert seen == [min(before + 10, 19)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


async def test_a_directory_is_closed_when_nobody_uses_it(tmp_path: Path) -> None:
    """At once where nobody does, however long frames refer to it; and only then."""
    directory = Directory.open(tmp_path)
    number = directory.descriptor
    directory.acquire()
    directory.close()
    assert os.fstat(number)
    directory.release()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    with pytest.raises(FileNotFoundError):
        directory.acquire()
    directory.close()


async def test_a_closed_cache_keeps_no_descriptor(tmp_path: Path) -> None:
    """Also where reads were cancelled, and their errors are kept with all their frames."""
    before = set(os.listdir("/proc/self/fd"))
    cache = disk_cache(tmp_path)
    await cache.open()
    reading = asyncio.ensure_future(cache.read(key()))
    await asyncio.sleep(0)
    reading.cancel()
    try:
        await reading
    except asyncio.CancelledError as error:
        kept = error
    await cache.aclose()
    await until(lambda: set(os.listdir("/proc/self/fd")) <= before)
    assert kept.__traceback__ is not None


async def test_an_opening_that_is_cancelled_keeps_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever its thread gets there; and the cache may be opened again."""
    before = set(os.listdir("/proc/self/fd"))
    started, go_on, opened_since = threading.Event(), threading.Event(), threading.Event()
    original = Directory.open

    def slow(path: Path, *, create: bool = False) -> Directory:
        started.set()
        assert go_on.wait(20)
        directory = original(path, create=create)
        opened_since.set()
        return directory

    monkeypatch.setattr(Directory, "open", slow)
    cache = disk_cache(tmp_path)
    opening = asyncio.ensure_future(cache.open())
    await asyncio.to_thread(started.wait, 20)
    opening.cancel()
    await asyncio.wait([opening])
    go_on.set()
    await asyncio.to_thread(opened_since.wait, 20)
    await until(lambda: set(os.listdir("/proc/self/fd")) <= before)
    monkeypatch.undo()
    await cache.open()
    await cache.aclose()
