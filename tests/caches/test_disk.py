"""DiskCache: what is written is read, under the same settings, and nobody waits for it long."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from disk_bench import (
    IDENTITY,
    NAME,
    ROWS,
    Warnings,
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
from aioloader._caches.identity import Identity
from aioloader._memory.layout import take_rows, view
from aioloader._order.group_order import GroupOrder
from aioloader.errors import CacheCorrupt, CacheMismatch

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


def age_of(path: Path) -> float:
    return time.time() - path.stat().st_ctime


DIFFERENT = {
    "batch_size": 8,
    "length": 101,
    "drop_remainder": True,
    "seed": 8,
    "shuffle_first": True,
    "shuffle_later": "itemwise",
    "arrays": (("uint8", 6), ("float32", 1)),
    "data": "version 2",
    "order": 2,
}


@pytest.mark.parametrize("field", DIFFERENT)
@pytest.mark.parametrize("readonly", [False, True])
async def test_other_settings_are_a_mismatch(tmp_path: Path, field: str, readonly: bool) -> None:
    """Which shows both sides, and where to look; the cache stays as it is."""
    async with opened(tmp_path):
        pass
    other = disk_cache(tmp_path, identity=identity(**{field: DIFFERENT[field]}), readonly=readonly)
    with pytest.raises(CacheMismatch) as caught:
        await other.open()
    said = str(caught.value)
    assert field in said
    assert str(tmp_path / NAME) in said
    assert "in the cache" in said
    assert len(said.splitlines()) == 3, "nothing else differs"
    await other.aclose()
    async with opened(tmp_path, readonly=True):
        pass


async def test_all_differences_are_shown(tmp_path: Path) -> None:
    """Not only the first."""
    async with opened(tmp_path):
        pass
    with pytest.raises(CacheMismatch) as caught:
        await disk_cache(tmp_path, identity=identity(**DIFFERENT)).open()
    assert all(name in str(caught.value) for name in DIFFERENT)
    assert "seed: 7 in the cache, 8 here" in str(caught.value)


async def test_names_and_shapes_of_arrays_may_change(tmp_path: Path) -> None:
    """As long as position, dtype and size stay."""
    async with opened(tmp_path) as cache:
        await fill(cache, key())
    arrays = {
        "picture": ((31, 25, 2), "uint8", "uint8"),
        "w": ((3, 1), "bfloat16", "float32"),
        "l": ((1,), "int64", "int32"),
    }
    layouts = layouts_of(arrays)
    same = Identity.of(
        NAME, GroupOrder(100, ROWS, 7, drop_remainder=False, shuffle_later="batchwise"), layouts,
        data="version 1", version=1,
    )  # fmt: skip
    assert same == IDENTITY
    async with opened(tmp_path, layouts=layouts) as cache:
        found = await cache.read(key())
        assert found is not None
        got = view(found.buffer, found.layouts, found.offset)
        assert got["picture"].shape == (ROWS, 31, 25, 2)
        assert list(raw(got).values()) == list(raw(batch(key())).values())


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


async def test_two_groups_in_one_location_never_meet(tmp_path: Path) -> None:
    """Each has a directory of its own, and its name is part of its identity."""
    async with opened(tmp_path) as one:
        other = identity(name="validation-0")
        async with opened(tmp_path, name="validation-0", identity=other) as two:
            await fill(one, key())
            assert await two.read(key()) is None
    os.rename(tmp_path / NAME, tmp_path / "training-1")
    with pytest.raises(CacheMismatch, match="group: 'training-0' in the cache, 'training-1' here"):
        await disk_cache(tmp_path, name="training-1", identity=identity(name="training-1")).open()


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


async def test_the_first_of_several_decides_the_settings(tmp_path: Path) -> None:
    """Who opens a new cache at the same moment with others finds theirs, whole."""
    caches = [disk_cache(tmp_path, identity=identity(seed=seed % 2)) for seed in range(8)]
    results = await asyncio.gather(*(cache.open() for cache in caches), return_exceptions=True)
    assert (
        sorted(type(result).__name__ for result in results)
        == ["CacheMismatch"] * 4 + ["NoneType"] * 4
    )
    for cache in caches:
        await cache.aclose()
    assert json.loads((tmp_path / NAME / "identity.json").read_text())["seed"] in (0, 1)
    assert unfinished(tmp_path) == []


async def test_a_newer_format_is_a_mismatch(tmp_path: Path) -> None:
    """Of the whole cache, or of one entry."""
    async with opened(tmp_path) as cache:
        await fill(cache, key())
        path = path_of(tmp_path, key())
        raw = bytearray(path.read_bytes())
        raw[8] += 1
        path.write_bytes(raw)
        assert await cache.read(key()) is None
        assert cache.counts.mismatched == 1
    newer = msgspec.structs.asdict(identity(format=2))
    (tmp_path / NAME / "identity.json").write_text(json.dumps({**newer, "more": [1]}))
    with pytest.raises(CacheMismatch, match="version 2 of the format"):
        await disk_cache(tmp_path).open()


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


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}', b'{"format": "x"}',
     b'{"format": 1, "seed": NaN}', b"x" * (1 << 21)],
    ids=range(10),
)  # fmt: skip
async def test_an_identity_of_nonsense_is_an_error_that_says_so(
    tmp_path: Path, text: bytes
) -> None:
    """Whoever wrote it: nothing is read or written under settings that nobody knows."""
    (tmp_path / NAME).mkdir()
    path = tmp_path / NAME / "identity.json"
    path.write_bytes(text)
    for readonly in (False, True):
        with pytest.raises(CacheCorrupt, match=r"identity\.json is not the identity of a cache"):
            await disk_cache(tmp_path, readonly=readonly).open()
    assert path.read_bytes() == text


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
            assert len(os.listdir("/proc/self/fd")) <= before
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
