"""DiskCache: what is written is read, under the same settings, and nobody waits for it long."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from disk_bench import (
    IDENTITY,
    NAME,
    ROWS,
    Warnings,
    age_of,
    batch,
    content,
    disk_cache,
    extras,
    fill,
    identity,
    is_right,
    key,
    layouts_of,
    opened,
    path_of,
    raw,
    unfinished,
)
from support import until

from aioloader._caches import disk, entry
from aioloader._caches.disk import CacheCounts
from aioloader._memory.layout import take_rows, view

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", "bfloat16"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "int4", "uint4"),
]


async def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Arrays and additional data, of several epochs, by this cache and by the next one."""
    keys = [key(0), key(999), key(1000), key(3, epoch=12), key(123_456_789)]
    async with opened(tmp_path) as cache:
        for each in keys:
            assert await cache.read(each) is None
        await fill(cache, *keys)
        for each in keys:
            found = await cache.read(each)
            assert found is not None
            assert is_right(found, each)
        assert cache.counts == CacheCounts(hits=5, misses=5, written=5)
    async with opened(tmp_path, readonly=True) as cache:
        for each in keys:
            found = await cache.read(each)
            assert found is not None
            assert is_right(found, each)
    assert unfinished(tmp_path) == []


@pytest.mark.parametrize("dtype", DTYPES)
async def test_all_dtypes_come_back(tmp_path: Path, dtype: str) -> None:
    """Bit by bit, beside others, also without any element."""
    arrays = {
        "a": ((3, 5), dtype, "float32"),
        "b": ((), dtype, "float32"),
        "none": ((0, 2), dtype, "float32"),
        "c": ((7,), "uint8", "uint8"),
    }
    layouts = layouts_of(arrays)
    written = batch(key(), layouts)
    if dtype == "bool":
        written = {
            name: (array.view("uint8") % 2).view(array.dtype) for name, array in written.items()
        }
    async with opened(tmp_path, layouts=layouts) as cache:
        await cache.write(key(), written, {}, None)
        found = await cache.read(key())
        assert found is not None
        assert content(found) == raw(written)
        assert {name: a.numpy_dtype.name for name, a in found.layouts.items()}["a"] == dtype


@pytest.mark.parametrize("rows", [0, 1, ROWS - 1, ROWS])
async def test_short_batches_are_entries_of_their_own_size(tmp_path: Path, rows: int) -> None:
    """And are not served where a batch of another size is asked for."""
    async with opened(tmp_path) as cache:
        of = key(5, rows=rows)
        layouts = take_rows(layouts_of(), rows)
        await cache.write(of, batch(of, layouts), extras(of), None)
        found = await cache.read(of)
        assert found is not None
        assert found.layouts == layouts
        assert content(found) == raw(batch(of, layouts))
        assert found.extras == extras(of)
        assert await cache.read(key(5, rows=(rows + 1) % (ROWS + 1))) is None
        assert cache.counts == CacheCounts(hits=1, mismatched=1, written=1)


async def test_arrays_are_where_jax_takes_them_over(tmp_path: Path) -> None:
    """Page by page, so that JAX has no need to copy; and they may be written to, privately."""
    async with opened(tmp_path) as cache:
        await fill(cache, key())
        found = await cache.read(key())
        assert found is not None
        assert found.offset % 4096 == 0
        arrays = view(found.buffer, found.layouts, found.offset)
        assert all(array.ctypes.data % 64 == 0 for array in arrays.values())
        arrays["image"][...] = 0
        again = await cache.read(key())
        assert again is not None
        assert is_right(again, key())


async def test_jax_arrays_functions_and_other_dtypes_are_converted(tmp_path: Path) -> None:
    """In the thread that writes, to the dtype that the cache has."""
    threads = []

    def label() -> Any:
        threads.append(threading.current_thread())
        return jnp.arange(ROWS, dtype="int32")

    async with opened(tmp_path) as cache:
        arrays = {
            "image": jnp.full((ROWS, 50, 31), 7, "float32"),
            "weight": np.ones((3, ROWS)).T,
            "label": label,
        }
        cache.write(key(), arrays, {}, None)
        await cache.flush()
        found = await cache.read(key())
        assert found is not None
        got = view(found.buffer, found.layouts, found.offset)
        assert (got["image"] == 7).all()
        assert got["label"].tolist() == [0, 1, 2, 3]
        assert (got["weight"].astype(float) == 1).all()
        assert threads != [threading.current_thread()]


async def test_an_entry_outlives_its_file_and_the_cache(tmp_path: Path) -> None:
    """It is a mapping: the file may be removed or replaced, and the cache closed."""
    async with opened(tmp_path) as cache:
        await fill(cache, key())
        found = await cache.read(key())
        await cache.write(key(), batch(key(1)), extras(key(1)), None)
    path_of(tmp_path, key()).unlink()
    assert found is not None
    assert is_right(found, key())


async def test_arrays_are_verified_at_the_first_read_of_a_process_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the file has been replaced since; and never where they are trusted."""
    verified = []
    original = entry.require_blocks
    monkeypatch.setattr(
        entry, "require_blocks", lambda *args: [verified.append(1), original(*args)]
    )
    async with opened(tmp_path) as cache, opened(tmp_path, verify=False) as trusting:
        await fill(cache, key())
        await until(lambda: age_of(path_of(tmp_path, key())) > 0.2)
        for _ in range(3):
            assert await trusting.read(key()) is not None
        assert verified == []
        for _ in range(3):
            assert await cache.read(key()) is not None
        assert verified == [1]
        async with opened(tmp_path, readonly=True) as other:
            assert await other.read(key()) is not None
        assert verified == [1]
        await fill(cache, key())
        assert await cache.read(key()) is not None
        assert await cache.read(key()) is not None
        assert verified == [1, 1, 1], "what has just been written might be written again"
        await until(lambda: age_of(path_of(tmp_path, key())) > 0.2)
        assert await cache.read(key()) is not None
        assert await cache.read(key()) is not None
        verified.clear()
        monkeypatch.setattr(disk, "_verified", set())  # as in another process
        assert await cache.read(key()) is not None
        assert verified == [1]


async def test_an_entry_is_unmapped_off_the_event_loop(tmp_path: Path) -> None:
    """That takes a while where it is large; what is discarded late is let go at once."""
    async with opened(tmp_path) as cache:
        await fill(cache, key(0))
        threads: list[str] = []
        for _ in range(2):
            found = await cache.read(key(0))
            assert found is not None
            buffer = found.buffer
            weakref.finalize(buffer, lambda: threads.append(threading.current_thread().name))
            del found
            cache.discard(buffer)
            del buffer
            await until(lambda: len(threads) == 1)
            assert threads.pop().startswith("aioloader-cache-read")
    cache.discard(bytearray())


@pytest.mark.parametrize("answers", [True, False])
async def test_a_cancelled_read_is_over_when_the_cache_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    """Nobody gets what it brings; a disk that never answers is not waited for."""
    begun, go_on, read = threading.Event(), threading.Event(), entry.EntryFormat.open

    def slow(*arguments: Any, **options: Any) -> Any:
        begun.set()
        assert go_on.wait(50)
        return read(*arguments, **options)

    async with opened(tmp_path) as cache:
        await fill(cache, key(0))
        monkeypatch.setattr(entry.EntryFormat, "open", slow)
        reading = asyncio.ensure_future(cache.read(key(0)))
        await until(begun.is_set)
        reading.cancel()
        await asyncio.wait([reading])
        closing = asyncio.ensure_future(cache.aclose())
        await asyncio.sleep(0)
        if answers:
            go_on.set()
        await closing
        names = {thread.name for thread in threading.enumerate()}
        assert any(name.startswith("aioloader-cache-read") for name in names) is not answers
        go_on.set()


async def test_an_entry_of_other_settings_is_a_mismatch(tmp_path: Path) -> None:
    """Also where somebody has copied it into this cache, or renamed it within."""
    async with opened(tmp_path / "a") as cache:
        await fill(cache, key(0), key(1))
    async with opened(tmp_path / "b", identity=identity(seed=9)) as cache:
        await fill(cache, key(2))
    os.rename(path_of(tmp_path / "b", key(2)), path_of(tmp_path / "a", key(2)))
    os.rename(path_of(tmp_path / "a", key(1)), path_of(tmp_path / "a", key(3)))
    with Warnings() as warnings:
        async with opened(tmp_path / "a") as cache:
            for index in (0, 1, 2, 3, 2, 3):
                await cache.read(key(index))
            assert cache.counts == CacheCounts(hits=1, misses=1, mismatched=4)
    assert len(warnings) == 2, "each entry is logged once"
    assert "2.batch" in warnings[0]
    assert "other settings" in warnings[0]
    assert "it is entry 0/0/1.batch" in warnings[1]


async def test_a_readonly_cache_writes_nothing(tmp_path: Path) -> None:
    """Not even a directory where there is none; what it is given to write is let go."""
    async with opened(tmp_path / "none", readonly=True) as cache:
        assert await cache.read(key()) is None
        await cache.write(key(), batch(key()), {}, None)
        await cache.room()
        assert cache.counts == CacheCounts(misses=1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / NAME).mkdir()
    async with opened(tmp_path, readonly=True) as cache:
        assert await cache.read(key()) is None
    assert list((tmp_path / NAME).iterdir()) == []


async def test_values_that_cannot_be_kept_cost_the_entry_and_are_named(tmp_path: Path) -> None:
    """In the one warning that there is; with pickle allowed, they are kept."""
    odd = {"when": [None, {1, 2}, None, None]}
    with Warnings() as warnings:
        async with opened(tmp_path) as cache:
            for index in range(3):
                cache.write(key(index), batch(key()), odd, None)
            await cache.flush()
            assert cache.counts == CacheCounts(failed=3)
    assert len(warnings) == 1
    assert "additional['when'][1] is or contains a set" in warnings[0]
    async with opened(tmp_path, allow_pickle=True) as cache:
        await cache.write(key(), batch(key()), odd, None)
        found = await cache.read(key())
        assert found is not None
        assert found.extras == odd
    with Warnings() as warnings:
        async with opened(tmp_path) as cache:
            assert await cache.read(key()) is None
            assert cache.counts == CacheCounts(mismatched=1)
    assert "allow_pickle=True" in warnings[0]


async def test_arrays_that_do_not_fit_cost_the_entry(tmp_path: Path) -> None:
    """By names and by shapes."""
    for arrays, said in (
        ({"image": batch(key())["image"]}, "arrays are"),
        ({**batch(key()), "label": np.zeros(3)}, r"'label' has the shape \(3,\)"),
    ):
        with Warnings() as warnings:
            async with opened(tmp_path) as cache:
                await cache.write(key(), arrays, {}, None)
                assert cache.counts.failed == 1
                assert await cache.read(key()) is None
        assert said.replace("\\", "") in warnings[0]


async def test_the_use_of_a_cache_that_is_not_open_is_an_error(tmp_path: Path) -> None:
    """So is opening it twice, and its use on another loop."""
    cache = disk_cache(tmp_path)
    with pytest.raises(RuntimeError, match="has not been opened"):
        await cache.read(key())
    await cache.open()
    with pytest.raises(RuntimeError, match="open already"):
        await cache.open()

    async def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await cache.read(key())

    await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
    await cache.aclose()
    assert "closed" in repr(cache)


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    """At construction."""
    for name in ("", "a/b", "..", ".hidden", "a\0b", "x" * 200):
        with pytest.raises(ValueError, match="name="):
            disk_cache(tmp_path, name=name)
    with pytest.raises(ValueError, match="cachers"):
        disk_cache(tmp_path, cachers=0)
    with pytest.raises(TypeError, match="cachers"):
        disk_cache(tmp_path, cachers="many")
    with pytest.raises(TypeError):
        disk_cache(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layouts is empty"):
        disk.DiskCache(
            tmp_path, NAME, IDENTITY, {}, readonly=False, verify=True, allow_pickle=False
        )


async def test_reading_and_writing_leave_no_descriptor_open(tmp_path: Path) -> None:
    """Not for misses and damaged entries either, and without waiting for the collector."""
    async with opened(tmp_path) as cache:
        await fill(cache, key(0), key(1))
        path_of(tmp_path, key(1)).write_bytes(b"?")
        gc.disable()
        try:
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(20):
                for index in range(3):
                    await cache.read(key(index))
                cache.write(key(0), {}, {}, None)
                await cache.flush()
            await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        finally:
            gc.enable()


async def test_entries_survive_jax(tmp_path: Path) -> None:
    """An array over the mapping is right after the entry is dropped, and gives it back."""
    async with opened(tmp_path) as cache:
        await fill(cache, key())
        found = await cache.read(key())
        assert found is not None
        array = jax.device_put(view(found.buffer, found.layouts, found.offset)["weight"])
        del found
        assert np.asarray(array).tobytes() == raw(batch(key()))["weight"]
