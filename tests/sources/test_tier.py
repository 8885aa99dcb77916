"""LocalTier: what was fetched is there the next time, whole and right, or not at all."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import mmap
import os
import pickle
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import obstore
import pytest
from obstore.store import MemoryStore
from servers.fixtures import Served, content
from support import script, until

from aioloader import DataGroup, FetchPolicy, Loader
from aioloader.sources import LocalTier, ObjectStoreSource
from aioloader.sources.tier_entry import HEADER_BYTES, TierKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

STORE = "a store"


@pytest.fixture
async def tier(tmp_path: Path) -> AsyncIterator[LocalTier]:
    async with LocalTier(tmp_path / "tier", 1 << 20) as tier:
        yield tier


def key_of(name: str, **known: Any) -> TierKey:
    return TierKey(STORE, name, **known)


async def put(tier: LocalTier, key: TierKey, data: bytes) -> None:
    tier.keep(key, memoryview(data))
    await tier.flush()


def entries(tier_path: Path) -> list[Path]:
    return sorted(path for path in tier_path.glob("??/*") if path.is_file())


def used(tier_path: Path) -> int:
    """Return the bytes of all files but the count of them."""
    return sum(p.stat().st_size for p in tier_path.rglob("*") if p.is_file() and p.name != "usage")


@pytest.mark.parametrize("length", [0, 1, 5000, (1 << 19) + 3])
async def test_what_was_kept_is_there_again(tier: LocalTier, length: int) -> None:
    """Byte for byte, read-only, also for another tier over the same directory."""
    data = os.urandom(length)
    assert await tier.get(key_of("a")) is None
    await put(tier, key_of("a"), data)
    for each in (tier, pickle.loads(pickle.dumps(tier))):
        payload = await each.get(key_of("a"))
        assert payload is not None
        assert payload == data
        assert payload.readonly
        await each.aclose()
    figures = tier.statistics()
    assert (figures.hits, figures.misses, figures.stored) == (1, 1, 1)


async def test_large_objects_are_mapped(tmp_path: Path) -> None:
    """And stay whole when their files go."""
    async with LocalTier(tmp_path, 8 << 20) as tier:
        data = os.urandom(3 << 20)
        await put(tier, key_of("a"), data)
        payload = await tier.get(key_of("a"))
        assert payload is not None
        assert isinstance(payload.obj, mmap.mmap)
        assert payload.readonly
        entries(tmp_path)[0].unlink()
        assert payload == data
        del payload


async def test_other_bytes_are_other_entries(tier: LocalTier) -> None:
    """Another store, key, range or checksum is never served for this one."""
    await put(tier, key_of("a", start=0, stop=2), b"01")
    assert await tier.get(key_of("a", start=0, stop=2)) == b"01"
    for key in (
        key_of("a"),
        key_of("a", start=0, stop=3),
        key_of("a", start=2, stop=0),
        key_of("b", start=0, stop=2),
        key_of("a", start=0, stop=2, checksum="md5:00"),
        TierKey("another", "a", 0, 2),
    ):
        assert await tier.get(key) is None


async def test_an_object_that_has_changed_is_fetched_again(tier: LocalTier) -> None:
    """Where its ETag or size is known by now; where neither is, the entry is right."""
    for known in ({"etag": '"2"'}, {"nbytes": 4}):
        await put(tier, key_of("a", etag='"1"'), b"old")
        assert await tier.get(key_of("a")) == b"old"
        assert await tier.get(key_of("a", etag='"1"', nbytes=3)) == b"old"
        assert await tier.get(key_of("a", **known)) is None
        assert await tier.get(key_of("a")) is None  # it was removed
    assert tier.statistics().stale == 2
    assert tier.statistics().damaged == 0


def flipped(raw: bytes, place: int) -> bytes:
    return raw[:place] + bytes([raw[place] ^ 16]) + raw[place + 1 :]


@pytest.mark.parametrize("size", [40, (1 << 20) + 40])
async def test_damaged_and_torn_entries_are_misses(tmp_path: Path, size: int) -> None:
    """Wherever they are damaged or cut: counted, removed, and made anew."""
    async with LocalTier(tmp_path, 4 << 20) as tier:
        data = os.urandom(size)
        await put(tier, key_of("a"), data)
        (path,) = entries(tmp_path)
        whole = path.read_bytes()
        damages = [flipped(whole, n) for n in (*range(0, 88, 5), HEADER_BYTES, len(whole) - 1)]
        damages += [whole[:n] for n in (0, 10, HEADER_BYTES, len(whole) - 1)] + [whole + b"x"]
        damages += [bytes(len(whole)), b"another file altogether"]
        for number, damaged in enumerate(damages, 1):
            path.write_bytes(damaged)
            assert await tier.get(key_of("a")) is None
            assert tier.statistics().damaged == number
            assert not path.exists()
        await put(tier, key_of("a"), data)
        assert await tier.get(key_of("a")) == data


async def test_an_entry_under_anothers_name_is_a_miss(tier: LocalTier, tmp_path: Path) -> None:
    """An entry tells itself what it is of."""
    await put(tier, key_of("a"), b"a's")
    (path,) = entries(tmp_path / "tier")
    folder, name = key_of("b").path
    (tmp_path / "tier" / folder).mkdir(exist_ok=True)
    path.rename(tmp_path / "tier" / folder / name)
    assert await tier.get(key_of("b")) is None


async def test_without_verify_contents_are_believed(tmp_path: Path) -> None:
    """But no header, nor a length."""
    async with LocalTier(tmp_path, 1 << 20, verify=False) as tier:
        await put(tier, key_of("a"), b"0123456789")
        (path,) = entries(tmp_path)
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + b"x")
        assert await tier.get(key_of("a")) == b"012345678x"
        path.write_bytes(whole[:-1])
        assert await tier.get(key_of("a")) is None


async def test_a_hostile_directory_is_not_left(tmp_path: Path) -> None:
    """Neither links nor FIFOs nor devices in place of entries, folders or the count."""
    secret = tmp_path / "secret"
    secret.mkdir()
    async with LocalTier(secret, 1 << 20) as other:
        await put(other, key_of("a"), b"not to be read")
    (entry,) = entries(secret)
    folder, name = key_of("a").path
    path = tmp_path / "tier"
    async with LocalTier(path, 1 << 20) as tier:
        (path / folder).mkdir(parents=True)
        (path / folder / name).symlink_to(entry)
        assert await tier.get(key_of("a")) is None
        (path / folder / name).unlink()
        os.mkfifo(path / folder / name)
        assert await tier.get(key_of("a")) is None
        (path / folder / name).unlink()
        (path / folder).rmdir()
        (path / folder).symlink_to(entry.parent)
        assert await tier.get(key_of("a")) is None
        await put(tier, key_of("a"), b"replaced")
        assert entry.read_bytes().endswith(b"not to be read")
    for each in ("usage", "tier"):
        target = tmp_path / f"{each} target"
        link = path / "usage" if each == "usage" else path
        if each == "usage":
            link.unlink(missing_ok=True)
            target.write_bytes(b"")
        else:
            link.rename(tmp_path / "away")
            target.mkdir()
        link.symlink_to(target)
        async with LocalTier(path, 1 << 20) as tier:
            await put(tier, key_of("b"), b"b")
        assert target.stat().st_size == 0 if each == "usage" else not list(target.iterdir())


async def test_the_bound_is_kept_and_the_oldest_go_first(tmp_path: Path) -> None:
    """Whatever was used last stays."""
    size = 1000 + HEADER_BYTES
    async with LocalTier(tmp_path, 10 * size) as tier:
        for number in range(10):
            await put(tier, key_of(f"{number}"), bytes(1000))
        for number in range(10):  # the last was used longest ago, and the first right now
            folder, name = key_of(f"{number}").path
            os.utime(tmp_path / folder / name, (0, time.time() - 100 * (number + 1)))
        assert await tier.get(key_of("9")) is not None  # now it is the youngest
        await put(tier, key_of("new"), bytes(1000))
        assert used(tmp_path) <= 10 * size
        kept = [n for n in range(10) if await tier.get(key_of(f"{n}")) is not None]
        assert kept == [0, 1, 2, 3, 4, 5, 6, 9]
        assert await tier.get(key_of("new")) is not None
        assert tier.statistics().evicted == 2
        await put(tier, key_of("too large"), bytes(10 * size))
        assert tier.statistics().skipped == 1


WRITER = """
import asyncio, sys
from aioloader.sources import LocalTier
from aioloader.sources.tier_entry import TierKey

async def main(path, me, bound):
    async with LocalTier(path, bound) as tier:
        for number in range(60):
            tier.keep(TierKey("s", f"{me}/{number}"), memoryview(bytes([number]) * 10_000))
            if number % 10 == 9:
                await tier.flush()
                print(number, flush=True)
                if len(sys.argv) > 4:
                    sys.stdin.read()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def test_several_processes_keep_the_bound_together(tmp_path: Path) -> None:
    """At every moment, and all entries are right."""
    bound = 300_000
    programs = [
        script(tmp_path, WRITER, str(tmp_path / "tier"), str(me), str(bound)) for me in range(3)
    ]
    most = 0
    while any(program.poll() is None for program in programs):
        most = max(most, _size_now(tmp_path / "tier"))
        await asyncio.sleep(0.002)
    for program in programs:
        out, err = program.communicate()
        assert (program.returncode, err) == (0, "")
        assert out.split()[-1] == "59"
    assert 0 < most <= bound
    async with LocalTier(tmp_path / "tier", bound) as tier:
        hits = 0
        for me in range(3):
            for number in range(60):
                payload = await tier.get(TierKey("s", f"{me}/{number}"))
                assert payload is None or payload == bytes([number]) * 10_000
                hits += payload is not None
        assert hits == len(entries(tmp_path / "tier")) > 20
        assert tier.statistics().damaged == 0


def _size_now(path: Path) -> int:
    """Return an upper bound on nothing: files may go while they are counted, and none be new."""
    total = 0
    for each in list(path.glob("??/*")):
        try:
            total += each.stat().st_size
        except FileNotFoundError:
            continue
    return total


async def test_a_killed_process_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    """Its unfinished files go with the next start, its lock at once, its count is mended."""
    path = tmp_path / "tier"
    program = script(tmp_path, WRITER, str(path), "1", "1000000", "stop")
    assert program.stdout is not None
    program.stdout.readline()
    program.send_signal(signal.SIGKILL)
    program.communicate()
    (path / f".{program.pid}-1-1.tmp").write_bytes(b"half")
    (path / "usage").write_bytes(b"\xff" * 16)
    async with LocalTier(path, 1_000_000) as tier:
        assert await tier.get(TierKey("s", "1/3")) == bytes([3]) * 10_000
        assert not list(path.glob(".*.tmp"))
        assert tier.statistics().nbytes == used(path)
        (path / "usage").write_bytes(bytes(16))
        await put(tier, key_of("a"), b"a")
        assert tier.statistics().nbytes == used(path)


async def test_a_stopped_process_with_the_lock_costs_writes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for it for long."""
    monkeypatch.setattr("aioloader.sources.tier_room._LOCK_SECONDS", 0.02)
    async with LocalTier(tmp_path, 1 << 20) as tier:
        await put(tier, key_of("a"), b"a")
        with open(tmp_path / "usage", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            await put(tier, key_of("b"), b"b")
        assert tier.statistics().failed == 1
        assert await tier.get(key_of("a")) == b"a"
        assert await tier.get(key_of("b")) is None
    assert len(caplog.records) == 1


def failing(error: int) -> Callable[..., Any]:
    def fail(*args: Any, **options: Any) -> Any:
        raise OSError(error, os.strerror(error))

    return fail


@pytest.mark.parametrize("call", ["write", "ftruncate", "replace", "mkdir"])
async def test_a_full_disk_costs_the_tier_and_one_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
) -> None:
    """What was fetched is delivered; no temporary file is left."""
    memory = MemoryStore()
    for number in range(8):
        obstore.put(memory, f"{number}", content(number))
    tier = LocalTier(tmp_path / "tier", 1 << 20)
    keys = [f"{number}" for number in range(8)]
    (tmp_path / "tier").mkdir()
    monkeypatch.setattr(os, call, failing(errno.ENOSPC))
    async with ObjectStoreSource(memory, keys=keys, tier=tier) as source:
        for _ in range(2):
            assert [bytes(await source[n]) for n in range(8)] == [content(n) for n in range(8)]
            await source.flush()
        assert source.statistics().local == 0
    monkeypatch.undo()
    assert not list((tmp_path / "tier").glob(".*.tmp"))
    assert not entries(tmp_path / "tier")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "No space left" in record.message


async def test_a_directory_that_cannot_be_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Because there is a file, for example."""
    (tmp_path / "file").write_bytes(b"")
    async with LocalTier(tmp_path / "file", 1 << 20) as tier:
        for _ in range(3):
            assert await tier.get(key_of("a")) is None
            await put(tier, key_of("a"), b"a")
        assert tier.statistics().misses == 3
    assert len(caplog.records) == 1


async def test_a_second_epoch_asks_nobody(web: Served, tmp_path: Path) -> None:
    """Of a loader with workers; the figures say where payloads came from."""

    def load(payload: memoryview, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = int.from_bytes(payload[:8], "big")

    keys = [f"o/{number:03}" for number in range(32)]
    tier = LocalTier(tmp_path, 1 << 20)
    group = DataGroup(8, range(32), loader_arrays={"x": ((), "int64", "int32")})
    async with ObjectStoreSource(web.url, keys=keys, tier=tier) as source:
        for epoch in range(2):
            async with Loader(
                load, group, fetch=source.fetch, num_workers=1, end_at=("epoch", 1)
            ) as loader:
                seen = [n async for batch in loader for n in np.asarray(batch.arrays["x"])]
            assert sorted(int(n) for n in seen) == list(range(32))
            await source.flush()
            assert web.counts()["requests"] == 32
            assert source.statistics().local == 32 * epoch
        assert source.statistics().requests == 32


async def test_writing_delays_no_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that does not answer keeps nobody waiting; too much of it is not kept at all."""
    gate = os.pipe()
    monkeypatch.setattr("aioloader.sources.tier_shelf._MOST_WAITING", 1000)
    monkeypatch.setattr("aioloader.sources.tier_shelf._write_all", lambda *_: os.read(gate[0], 1))
    memory = MemoryStore()
    for number in range(8):
        obstore.put(memory, f"{number}", bytes(600))
    tier = LocalTier(tmp_path, 1 << 20)
    source = ObjectStoreSource(memory, keys=[f"{n}" for n in range(8)], tier=tier)
    assert [len(await source[n]) for n in range(8)] == [600] * 8
    assert (tier.statistics().waiting, tier.statistics().skipped) == (1, 7)
    os.close(gate[1])
    await source.aclose()
    os.close(gate[0])
    assert not await tier.get(TierKey(source.identity, "0"))
    await tier.aclose()


async def test_closing_in_the_middle_ends_its_threads(tmp_path: Path) -> None:
    """Also when requests were cancelled that wait for it; it may be used again."""
    tier = LocalTier(tmp_path, 1 << 20)
    await put(tier, key_of("a"), b"a")
    tasks = [asyncio.ensure_future(tier.get(key_of("a"))) for _ in range(50)]
    await asyncio.sleep(0)
    for task in tasks[1:]:
        task.cancel()
    await tier.aclose()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await tier.get(key_of("a")) == b"a"
    await tier.aclose()
    await tier.aclose()


async def test_a_cancelled_close_leaves_no_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has not been written then is written, or not; nobody waits for it."""
    gate = os.pipe()
    monkeypatch.setattr("aioloader.sources.tier_shelf._write_all", lambda *_: os.read(gate[0], 1))
    tier = LocalTier(tmp_path, 1 << 20)
    tier.keep(key_of("a"), memoryview(b"a"))
    closing = asyncio.ensure_future(tier.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    os.close(gate[1])
    await until(lambda: not list(tmp_path.glob(".*.tmp")) and used(tmp_path) >= 0)
    os.close(gate[0])


async def test_hits_wait_for_no_request(web: Served, tmp_path: Path) -> None:
    """They need no room among those in flight, and do not count as quick answers."""
    policy = FetchPolicy(concurrency=1, attempt_timeout=20)
    keys = ["o/000", "o/001"]
    async with ObjectStoreSource(
        web.url, keys=keys, policy=policy, tier=LocalTier(tmp_path, 1 << 20)
    ) as source:
        await source[0]
        await source.flush()
        web.set(latency=30)
        slow = asyncio.ensure_future(source[1])
        await until(lambda: source.statistics().in_flight)
        assert bytes(await source[0]) == content(0)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)


@pytest.mark.parametrize(("most", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_bound_has_to_be_one(most: Any, error: type[Exception]) -> None:
    """The message names it."""
    with pytest.raises(error, match="max_bytes"):
        LocalTier("anywhere", most)


async def test_no_thread_is_left_when_it_has_been_closed(tmp_path: Path) -> None:
    """Not even for a moment, however nice threads are."""
    tier = LocalTier(tmp_path, 1 << 20)
    for number in range(50):
        await put(tier, key_of(f"{number}"), b"a")
    assert await tier.get(key_of("1")) == b"a"
    await tier.aclose()
    assert not [each for each in threading.enumerate() if each.name.startswith("aioloader-tier")]
