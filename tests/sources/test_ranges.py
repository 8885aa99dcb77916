"""Ranges: what all sources of a format share."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest
from counting_store import CountingStore

from aioloader import FetchError, FetchPolicy
from aioloader.sources import ObjectChanged, ObjectStore
from aioloader.sources.ranges import Once, Ranges, in_order


def test_something_is_made_once_however_many_want_it() -> None:
    """And again where that failed; pickled, it is there already."""
    made: list[int] = []

    async def make() -> int:
        made.append(len(made))
        await asyncio.sleep(0)
        if len(made) == 1:
            raise OSError("not yet")
        return 7

    async def main() -> None:
        with pytest.raises(OSError, match="not yet"):
            await once.get(make)
        assert await asyncio.gather(*(once.get(make) for _ in range(5))) == [7] * 5

    once: Once[int] = Once()
    asyncio.run(main())
    assert made == [0, 1]
    assert asyncio.run(pickle.loads(pickle.dumps(once)).get(make)) == 7
    assert len(made) == 2


def test_results_come_in_order_and_the_first_error_ends_the_rest() -> None:
    """As it is, and not in a group; no more run at once than may."""
    running: list[int] = []
    begun: list[int] = []
    most = 0

    async def double(number: int) -> int:
        nonlocal most
        running.append(number)
        begun.append(number)
        most = max(most, len(running))
        try:
            for _ in range(10 - number):
                await asyncio.sleep(0)
            if number == 13:
                raise OSError("thirteen")
        finally:
            running.remove(number)
        return 2 * number

    async def main() -> None:
        assert await in_order(double, range(9), at_once=3) == [2 * n for n in range(9)]
        assert most == 3
        assert await in_order(double, [], at_once=3) == []
        with pytest.raises(OSError, match="thirteen"):
            await in_order(double, [0, 13, 1], at_once=2)
        assert running == []
        assert begun == [*range(9), 0, 13]

    asyncio.run(main())


class _Short(CountingStore):
    """Gives less than it was asked for, and says nothing."""

    async def get_range(self, key: str, start: int, stop: int, **options: Any) -> memoryview:
        return (await super().get_range(key, start, stop, **options))[:-1]


def test_a_short_answer_is_an_error_whatever_the_store_says() -> None:
    """It may pass, and so is tried again."""
    store = _Short({"a": bytes(100)})
    ranges = Ranges(store, FetchPolicy(retries=2, backoff=0.0))
    with pytest.raises(FetchError, match=r"a\[10:20\] could not.*3 attempts.*9 of 10 bytes"):
        asyncio.run(ranges.read_alone(store.info("a"), 10, 20))


def test_what_is_gone_or_changed_is_told_apart() -> None:
    """By its size, or its ETag."""
    store = CountingStore({"a": bytes(100)})
    info = store.info("a")
    asyncio.run(Ranges(store).require_unchanged(info))
    for data in (bytes(99) + b"1", bytes(99)):
        store.objects["a"] = data
        with pytest.raises(ObjectChanged, match="a has"):
            asyncio.run(Ranges(store).require_unchanged(info))


def test_a_store_that_was_opened_here_is_closed_here(tmp_path: Any) -> None:
    """And no other; also after pickling."""
    (tmp_path / "a").write_bytes(b"12")
    own, given = Ranges(str(tmp_path)), Ranges(ObjectStore(str(tmp_path)))

    async def main() -> None:
        for ranges in (own, given, pickle.loads(pickle.dumps(own))):
            info = await ranges.head("a")
            assert await ranges.read_alone(info, 0, 2) == b"12"
            assert ranges.store._client is not None  # type: ignore[attr-defined]
            await ranges.aclose()
            assert (ranges.store._client is None) == (ranges is not given)  # type: ignore[attr-defined]

    asyncio.run(main())
