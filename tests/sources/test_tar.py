"""TarSource: samples at random, by no more requests than planned, wherever it is used."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from counting_store import CountingStore
from shards import ALL, NAMES, OBJECTS, planned, tar_of, with_source
from support import both_loops, run_on, until

from aioloader import (
    FetchError,
    FetchPolicy,
)
from aioloader.sources import (
    IndexDamaged,
    ObjectChanged,
    ShardError,
    TarIndex,
    TarScan,
    TarSource,
)

if TYPE_CHECKING:
    from pathlib import Path

QUICK = FetchPolicy(backoff=0.0)


@both_loops
def test_elements_are_samples_of_all_shards_in_their_order(loop: str) -> None:
    """Each a dict of read-only views; indices are checked as a list's."""

    async def main() -> None:
        source = await TarSource.indexed(CountingStore(OBJECTS), NAMES)
        assert len(source) == len(ALL) == 300
        numbers = [0, 1, 42, 299, -1, -300, np.int64(7)]
        for number in numbers:
            element = await source[number]
            assert element == ALL[number]
            assert all(v.readonly for v in element.values() if isinstance(v, memoryview))
        assert source.key(-1) == ALL[-1]["__key__"]
        assert await source.fetch(-2) == ALL[-2]
        for wrong, error in ((300, IndexError), (-301, IndexError), (True, TypeError)):
            with pytest.raises(error, match="index="):
                await source[wrong]
        for wrong in (0.0, "0", slice(2), None):
            with pytest.raises(TypeError, match="index="):
                await source[wrong]  # type: ignore[index]

    run_on(loop, main())


def test_samples_at_random_need_the_requests_that_are_planned_for_them() -> None:
    """200 of 10 shards that are asked for at once; equal ones are fetched once."""
    store = CountingStore(OBJECTS)
    numbers = random.Random(4).choices(range(300), k=200)

    async def main(source: TarSource) -> None:
        store.asked.clear()
        before = source.statistics()
        elements = await asyncio.gather(*(source[number] for number in numbers))
        assert elements == [ALL[number] for number in numbers]
        after = source.statistics()
        plan = planned(source.index, numbers, 4000, 20000)
        assert sorted(store.asked) == plan
        assert 10 < len(plan) < 150
        assert after.requests - before.requests == len(plan)
        assert after.bytes - before.bytes == store.bytes_asked
        assert (after.fetched, after.fetched + after.shared) == (len(set(numbers)), 200)

    with_source(main, store, coalesce_gap=4000, coalesce_most=20000)


def test_files_of_a_sample_are_slices_of_one_payload() -> None:
    """A sample that is asked for alone is one request, without its neighbours."""
    store = CountingStore(OBJECTS)

    async def main(source: TarSource) -> None:
        store.asked.clear()
        element = await source[3]
        place = source.index[3]
        ((_, start, stop),) = store.asked
        assert (start, stop) == (place.spans[0][0], place.spans[-1][1])
        parts = [value for value in element.values() if isinstance(value, memoryview)]
        assert len(parts) == 3
        assert {id(part.obj) for part in parts} == {id(store.objects["train/000.tar"])}

    with_source(main, store)


def test_empty_files_are_not_asked_for() -> None:
    """They are empty views."""
    store = CountingStore({"a.tar": tar_of({"a.jpg": b"", "a.cls": b"", "b.jpg": b"1"})})

    async def main(source: TarSource) -> None:
        store.asked.clear()
        assert await source[0] == {"__key__": "a", "jpg": b"", "cls": b""}
        assert await source[1] == {"__key__": "b", "jpg": b"1"}
        assert [stop - start for _, start, stop in store.asked] == [1]

    with_source(main, store, "a.tar", coalesce_gap=0)


def test_a_dict_is_its_askers_own() -> None:
    """One who changes it changes nobody else's."""

    async def main(source: TarSource) -> None:
        one, other = await asyncio.gather(source[0], source[0])
        one.clear()
        assert other == ALL[0]

    with_source(main, CountingStore(OBJECTS))


@pytest.mark.parametrize(
    ("shards", "heads"),
    [
        ("train/*.tar", 0),
        ("train/{000..009}.tar", 10),
        (["train/{000,001}.tar", "train/00[2-9].tar"], 2),
    ],
)
def test_shards_are_named_by_patterns(shards: Any, heads: int) -> None:
    """As in a shell; what a listing tells is not asked for again."""
    store = CountingStore({**dict(reversed(OBJECTS.items())), "train/README": b""})

    async def main(source: TarSource) -> None:
        assert [info.key for info in source.index.shards] == list(OBJECTS)
        assert await source[299] == ALL[299]
        assert store.heads == heads

    with_source(main, store, shards)


@pytest.mark.parametrize(
    ("shards", "error", "text"),
    [
        ("none/*.tar", ValueError, r"shards='none/\*.tar' matches no object"),
        ("train/{000,000}.tar", ValueError, "more than once"),
        ([], ValueError, "names no object"),
        ([5], TypeError, "5 is neither a key nor an ObjectInfo"),
        ("train/017.tar", FetchError, r"train/017.tar could not be fetched.*ObjectMissing"),
    ],
)
def test_shards_that_are_not_there_are_errors(
    shards: Any, error: type[Exception], text: str
) -> None:
    """Named, when the source is opened."""
    with pytest.raises(error, match=text):
        with_source(asyncio.sleep, CountingStore(OBJECTS), shards)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"index_requests": 0}, ValueError, "index_requests=0"),
        ({"index_requests": 1.5}, TypeError, "index_requests=1.5"),
        ({"group_by": "folder"}, ValueError, "group_by='folder'"),
        ({"group_by": 5}, TypeError, "group_by=5"),
        ({"coalesce_gap": -1}, ValueError, "coalesce_gap=-1"),
        ({"coalesce_most": 0}, ValueError, "coalesce_most=0"),
    ],
)
def test_wrong_arguments_are_named(options: Any, error: type[Exception], text: str) -> None:
    """At once."""
    with pytest.raises(error, match=text):
        TarSource(CountingStore({}), "a.tar", **options)


def test_a_bad_shard_is_named_with_the_reason() -> None:
    """Not as a failed request."""
    store = CountingStore({**OBJECTS, "train/007.tar": b"\x1f\x8b" + bytes(5000)})
    with pytest.raises(ShardError, match=r"train/007\.tar, at byte 0: it is compressed with gzip"):
        with_source(asyncio.sleep, store)


def test_before_it_is_open_it_says_what_to_do() -> None:
    """Its length is not known; elements alone open it, and many openings are one."""

    async def main() -> None:
        store = CountingStore(OBJECTS)
        source = TarSource(store, NAMES)
        with pytest.raises(RuntimeError, match=r"await source\.open\(\)"):
            len(source)
        assert "not open" in repr(source)
        await asyncio.gather(source.open(), source.open(), source.open())
        assert store.heads == 10
        assert repr(source) == "<TarSource of counting://: 300 samples>"

    asyncio.run(main())


def test_an_index_file_is_written_once_and_read_from_then_on(tmp_path: Path) -> None:
    """Without a request; one of other shards or samples is refused."""
    path = tmp_path / "train.index"

    async def first(source: TarSource) -> TarIndex:
        return source.index

    store = CountingStore(OBJECTS)
    index = with_source(first, store, index=path)
    assert TarIndex.load(path) == index
    again = CountingStore(OBJECTS)
    for shards in (NAMES, "train/*.tar", list(OBJECTS), index.shards):
        assert with_source(first, again, shards, index=path) == index
    assert with_source(first, again, index=index) is index
    assert (again.heads, again.lists, again.asked) == (0, 0, [])
    for shards in ("train/{000..008}.tar", ["train/*.tar", "b.tar"], ["a.tar"], "b*.tar"):
        with pytest.raises(IndexDamaged, match=r"train\.index' is an index of other shards"):
            with_source(first, again, shards, index=path)
    changed = [dataclasses.replace(index.shards[0], size=5), *index.shards[1:]]
    with pytest.raises(IndexDamaged, match="index is an index of other shards"):
        with_source(first, again, changed, index=index)
    with pytest.raises(IndexDamaged, match=r"group_by='basename', and '.*lambda.*' is wanted"):
        with_source(first, again, index=path, group_by=lambda name: (name, ""))


def test_an_index_may_be_made_beside_a_download() -> None:
    """Of the bytes that come anyway; it is the same."""
    store = CountingStore(OBJECTS)
    found = []
    for key, data in OBJECTS.items():
        scan = TarScan(key)
        for at in range(0, len(data), 3000):
            scan.feed(data[at : at + 3000])
        found.append((store.info(key), scan.finish()))

    async def main(source: TarSource) -> TarIndex:
        return source.index

    assert with_source(main, store) == TarIndex.of(found)


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("change", [b"", bytes(BLOCK := 512)])
def test_a_shard_that_has_changed_is_an_error(etags: bool, change: bytes, tmp_path: Path) -> None:
    """By its ETag, or where the store has none by its size: never other bytes."""
    path = tmp_path / "train.index"
    with_source(lambda source: asyncio.sleep(0), CountingStore(OBJECTS, etags=etags), index=path)
    data = bytearray(OBJECTS["train/001.tar"])
    data[BLOCK * 9] ^= 1
    store = CountingStore({**OBJECTS, "train/001.tar": bytes(data) + change}, etags=etags)

    async def main(source: TarSource) -> None:
        assert [await source[0], await source[1]] == ALL[:2]
        if not (etags or change):
            return  # nobody can tell
        with pytest.raises(FetchError, match="ObjectChanged") as caught:
            await source[31]
        assert "sample 31 ('d/01-00001' of train/001.tar)" in str(caught.value)
        cause: BaseException | None = caught.value
        while isinstance(cause, FetchError):
            cause = cause.__cause__
        assert isinstance(cause, ObjectChanged)

    with_source(main, store, index=path)
    assert store.heads == (0 if etags else 1 + bool(change))


def test_requests_are_tried_again_and_no_more_than_the_policy_says() -> None:
    """A range that many wait for is retried once for all of them."""

    async def main(source: TarSource) -> None:
        store.failing = 2
        before = len(store.asked)
        elements = await asyncio.gather(*(source[number] for number in range(5)))
        assert elements == ALL[:5]
        assert len(store.asked) - before == 3
        assert source.statistics().retries == 2
        store.failing = 100
        with pytest.raises(FetchError, match=r"sample 7 .*6 attempts.*ShortRead"):
            await source[7]
        store.failing = 0
        assert await source[7] == ALL[7]

    store = CountingStore(OBJECTS)
    with_source(main, store, policy=QUICK)


def test_requests_in_flight_keep_to_the_policy_however_many_samples_are_asked_for() -> None:
    """And end when nobody waits for them any more."""

    async def main(source: TarSource) -> None:
        store.gate = asyncio.Event()
        store.asked.clear()
        store.ended = 0
        tasks = [asyncio.ensure_future(source[number]) for number in range(300)]
        await until(lambda: len(store.asked) == 4)
        statistics = source.statistics()
        assert (statistics.in_flight, statistics.limit) == (4, 4)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (len(store.asked), store.ended) == (4, 4)
        assert len(asyncio.all_tasks()) == 1
        store.gate = None
        assert await source[5] == ALL[5]

    store = CountingStore(OBJECTS)
    with_source(main, store, coalesce_gap=0, policy=FetchPolicy(concurrency=4))
