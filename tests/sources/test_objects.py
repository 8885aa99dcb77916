"""ObjectStoreSource: objects of a store as elements, for loaders and for datasets."""

from __future__ import annotations

import asyncio
import hashlib
import os
import zlib
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import obstore
import pytest
import xxhash
from obstore.store import MemoryStore
from servers.fixtures import OBJECTS, Served, content, serving
from support import both_loops, run_on, until

from aioloader import (
    DataGroup,
    Fetch,
    FetchError,
    FetchPolicy,
    Loader,
    MapDataset,
    MultiprocessingOptions,
)
from aioloader.sources import (
    CallableStore,
    ChecksumMismatch,
    ObjectChanged,
    ObjectInfo,
    ObjectMissing,
    ObjectStoreSource,
)
from aioloader.sources.errors import ShortRead
from aioloader.testing import Census

if TYPE_CHECKING:
    from pathlib import Path

KEYS = [f"o/{number:03}" for number in range(OBJECTS)]
ARRAYS = {"number": ((), "int64", "int32"), "nbytes": ((), "int64", "int32")}
QUICK = FetchPolicy(concurrency=32, attempt_timeout=5, backoff=0.001)


def load(payload: memoryview, arrays: Any, seed: int | None) -> dict[str, object]:
    arrays["number"][...] = int.from_bytes(payload[:8], "big")
    arrays["nbytes"][...] = len(payload)
    return {"pid": os.getpid(), "kind": type(payload).__name__}


def number_of(payload: memoryview) -> int:
    return int.from_bytes(payload[:8], "big")


def memory_of(objects: dict[str, bytes]) -> MemoryStore:
    memory = MemoryStore()
    for key, value in objects.items():
        obstore.put(memory, key, value)
    return memory


async def test_it_is_a_sequence_of_objects() -> None:
    """Indices are a list's, and elements read-only views of the client's own memory."""
    source = ObjectStoreSource(memory_of({"a": b"aa", "b": b"bbb"}), keys=["a", "b", ("b", 1, 3)])
    assert len(source) == 3
    assert [bytes(await source[i]) for i in range(3)] == [b"aa", b"bbb", b"bb"]
    assert bytes(await source[-1]) == b"bb"
    assert bytes(await source[np.int64(1)]) == b"bbb"
    payload = await source[0]
    assert payload.readonly
    assert type(payload.obj).__module__.startswith("obstore")
    for index in (3, -4):
        with pytest.raises(IndexError):
            await source[index]
    for index in (True, 1.0, "a", None):
        with pytest.raises(TypeError):
            await source[index]  # type: ignore[index]


async def test_it_is_fetched_by_index_by_key_or_by_range() -> None:
    """`fetch` takes whatever names bytes of the store; its figures are the source's."""
    source = ObjectStoreSource(memory_of({"a": b"0123", "other": b"45"}), keys=["a"])
    assert isinstance(source.fetch, Fetch)
    assert bytes(await source.fetch(0)) == b"0123"
    assert bytes(await source.fetch("other")) == b"45"
    assert bytes(await source.fetch(("a", 1, 3))) == b"12"
    figures = source.statistics()
    assert (figures.requests, figures.fetched, figures.bytes) == (3, 3, 8)


@both_loops
def test_a_loader_reads_an_s3_bucket(loop: str, s3: Any) -> None:
    """Fetched on the loop, decoded in workers, whichever loop it is."""
    url = s3.bucket({f"n/{number}": content(number) for number in range(24)})

    async def main() -> None:
        listed = ObjectStoreSource.listed(url, "n/", options=s3.options, policy=QUICK)
        async with await listed as source:
            group = DataGroup(8, range(len(source)), loader_arrays=ARRAYS)
            seen = []
            async with Loader(
                load, group, fetch=source.fetch, num_workers=2, end_at=("epoch", 2)
            ) as loader:
                async for batch in loader:
                    seen += np.asarray(batch.arrays["number"]).tolist()
                    assert os.getpid() not in batch.additional["pid"]
            assert sorted(seen) == sorted([*range(24)] * 2)
            figures = source.statistics()  # the second epoch asks for what may still be under way
            assert figures.requests + figures.shared == 48

    run_on(loop, main())


async def test_datasets_have_it_as_a_source(web: Served) -> None:
    """With `async for`, in order, many at once; the connections are closed in the end."""
    async with ObjectStoreSource(web.url, keys=KEYS[:40], policy=QUICK) as source:
        dataset = MapDataset.source(source).map(number_of)
        assert [number async for number in dataset] == list(range(40))
        web.set(latency=0.05)
        web.counts(reset=True)
        assert [number async for number in dataset.to_iter_dataset()] == list(range(40))
        assert web.counts()["requests"] == 40


def test_datasets_read_it_by_a_plain_loop(tmp_path: Path) -> None:
    """And by index, on an event loop of their own."""
    for number in range(8):
        (tmp_path / f"{number}").write_bytes(content(number))
    source = ObjectStoreSource(tmp_path, keys=[str(number) for number in range(8)])
    dataset = MapDataset.source(source).map(number_of)
    assert list(dataset) == list(range(8))
    assert dataset[5] == 5


async def test_workers_of_datasets_decode_what_is_fetched(web: Served) -> None:
    """Elements are fetched on a loop of this program, and go to workers for the rest."""
    async with ObjectStoreSource(web.url, keys=KEYS[:24], policy=QUICK) as source:
        dataset = MapDataset.source(source).map(lambda p: (number_of(p), os.getpid()))
        stream = dataset.to_iter_dataset().mp_prefetch(MultiprocessingOptions(num_workers=1))
        found = [(int(number), int(pid)) async for number, pid in stream]
        assert [number for number, _ in found] == list(range(24))
        assert os.getpid() not in {pid for _, pid in found}
        assert source.statistics().requests == 24


async def test_faults_are_tried_again_until_the_bytes_are_right(web: Served) -> None:
    """Sizes and ETags that were listed show what lies about its length, too."""
    keys = [(f"o/{number:03}", 0, len(content(number))) for number in range(64)]
    web.set(faults=0.3, kinds="reset,truncate,lie,408,429,500,503", seed=3)
    policy = FetchPolicy(concurrency=16, retries=20, backoff=0.001, attempt_timeout=5)
    async with ObjectStoreSource(web.url, keys=keys, policy=policy) as source:
        payloads = await asyncio.gather(*[source[number] for number in range(64)])
        assert [bytes(payload) for payload in payloads] == [content(n) for n in range(64)]
        assert source.statistics().retries > 5


async def test_errors_name_the_object_and_the_attempts(web: Served) -> None:
    """What is missing is not asked for twice."""
    async with ObjectStoreSource(web.url, keys=["o/000", "o/none"], policy=QUICK) as source:
        with pytest.raises(
            FetchError, match=rf"^{web.url}/o/none could not be fetched: 1"
        ) as caught:
            await source[1]
        assert isinstance(caught.value.__cause__, ObjectMissing)
        assert web.counts()["requests"] == 1
        with pytest.raises(FetchError, match="neither a key nor"):
            await source.fetch(("o/000", 1))


async def test_what_has_changed_since_it_was_listed_is_an_error() -> None:
    """By its ETag; by its size where there is no ETag; a size cut short is tried again."""
    memory = memory_of({"a": b"0123", "b": b"0123"})
    source = await ObjectStoreSource.listed(memory)
    obstore.put(memory, "a", b"4567")
    with pytest.raises(FetchError, match="such an error stays") as caught:
        await source[0]
    assert isinstance(caught.value.__cause__, ObjectChanged)
    assert bytes(await source[1]) == b"0123"

    async def listed(prefix: str) -> list[Any]:
        return [ObjectInfo("a", 3), ObjectInfo("b", 5)]

    async def get(key: str) -> bytes:
        return b"0123"

    policy = FetchPolicy(retries=2, backoff=0)
    source = await ObjectStoreSource.listed(CallableStore(get, list=listed), policy=policy)
    with pytest.raises(FetchError, match="a has 4 bytes, and was listed with 3"):
        await source[0]
    with pytest.raises(FetchError, match=r"3 attempts.*4 of 5 bytes") as caught:
        await source[1]
    assert isinstance(caught.value.__cause__, ShortRead)


@pytest.mark.parametrize(
    "checksum",
    [
        lambda data: f"crc32:{zlib.crc32(data):x}",
        lambda data: f"md5:{hashlib.md5(data).hexdigest().upper()}",
        lambda data: f"sha256:{hashlib.sha256(data).hexdigest()}",
        lambda data: f"xxh3:{xxhash.xxh3_64_hexdigest(data)}",
    ],
)
async def test_checksums_are_checked(checksum: Any) -> None:
    """Of whole objects and of ranges, small and large, by a mapping or a function."""
    objects = {"a": b"12345", "b": bytes(range(256)) * 2000}
    keys = ["a", "b", ("a", 1, 3)]
    right = {"a": checksum(objects["a"]), "b": checksum(objects["b"]), keys[2]: checksum(b"23")}
    source = ObjectStoreSource(memory_of(objects), keys=keys, checksums=right)
    assert [len(await source[n]) for n in range(3)] == [5, 512000, 2]
    source = ObjectStoreSource(memory_of(objects), keys=keys, checksums=right.get)
    assert [len(await source[n]) for n in range(3)] == [5, 512000, 2]
    damaged = memory_of({"a": b"1x345", "b": objects["b"][:-1] + b"\0"})
    policy = FetchPolicy(retries=1, backoff=0)
    source = ObjectStoreSource(damaged, keys=keys, checksums=right, policy=policy)
    for number in range(3):
        with pytest.raises(FetchError, match="2 attempts") as caught:
            await source[number]
        assert isinstance(caught.value.__cause__, ChecksumMismatch)


async def test_checksums_that_there_are_not_are_refused() -> None:
    """The message names what there is."""
    source = ObjectStoreSource(memory_of({"a": b""}), keys=["a"], checksums={"a": "magic:00"})
    with pytest.raises(FetchError, match="crc32, md5"):
        await source[0]


async def test_closing_leaves_nothing_and_it_opens_again(web: Served) -> None:
    """Also in the middle of requests, which are then whoever's they were."""
    before = Census.take().descriptors
    source = ObjectStoreSource(web.url, keys=KEYS, policy=QUICK)
    web.set(latency=0.02)
    task = asyncio.ensure_future(source[3])
    await until(lambda: source.statistics().in_flight)
    await source.aclose()
    await source.aclose()
    assert number_of(await task) == 3
    assert number_of(await source[4]) == 4
    await source.aclose()
    await until(lambda: not [n for n in Census.take().descriptors - before if "socket" in n])
    assert len(source) == OBJECTS


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "either keys or index"),
        ({"keys": ["a"], "index": "b"}, ValueError, "either keys or index"),
        ({"keys": "a"}, TypeError, "several keys"),
        ({"keys": [5]}, TypeError, "neither a key nor"),
        ({"keys": ["a"], "policy": 5}, TypeError, "policy=5"),
        ({"keys": ["a"], "pattern": "["}, ValueError, "not closed"),
        ({"keys": ["a"], "prefix": 5}, TypeError, "prefix=5"),
        ({"keys": ["a"], "options": {"b": "c"}}, TypeError, "options belong to a URL"),
    ],
)
def test_wrong_arguments_are_told_at_once(options: Any, error: Any, message: str) -> None:
    """Before anything is asked of a store."""
    with pytest.raises(error, match=message):
        ObjectStoreSource(MemoryStore(), **options)


def test_it_travels_with_what_it_was_given(tmp_path: Path) -> None:
    """Keys, policy and checksums; figures begin anew."""
    (tmp_path / "a").write_bytes(b"12")
    source = ObjectStoreSource(
        tmp_path, keys=["a"], policy=QUICK, checksums={"a": "crc32:4f5344cd"}
    )
    copy = cloudpickle.loads(cloudpickle.dumps(source))
    assert (copy.identity, list(copy.keys)) == (source.identity, ["a"])
    assert copy.fetch.policy == QUICK
    assert bytes(asyncio.run(_first(copy))) == b"12"
    fetch = cloudpickle.loads(cloudpickle.dumps(source.fetch))
    assert asyncio.run(fetch(0)) == b"12"
    assert "ObjectStoreSource" in repr(source)
    assert "1 objects" in repr(source)


async def _first(source: ObjectStoreSource) -> memoryview:
    return await source[0]


async def test_a_server_that_dies_and_comes_back_costs_retries(tmp_path: Path) -> None:
    """Its connections are no longer of use, and new ones are made."""
    for number in range(4):
        (tmp_path / f"{number}").write_bytes(content(number))
    policy = FetchPolicy(concurrency=8, retries=1000, backoff=0.02, item_timeout=50)
    with serving(tmp_path) as served:
        keys = [str(number) for number in range(4)]
        async with ObjectStoreSource(served.url, keys=keys, policy=policy) as source:
            assert number_of(await source[0]) == 0
            served.kill()
            tasks = [asyncio.ensure_future(source[number]) for number in range(4)]
            await until(lambda: source.statistics().retries >= 4)
            served.restart()
            assert [number_of(payload) for payload in await asyncio.gather(*tasks)] == [0, 1, 2, 3]
