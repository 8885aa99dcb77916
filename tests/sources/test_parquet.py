"""ParquetSource: rows at random, each row group fetched and decoded once."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from counting_store import CountingStore
from support import both_loops, run_on, until
from tables import ALL, OBJECTS, ONE_GROUP, ROWS, nothing, table_of, with_rows, written

from aioloader import FetchError, FetchPolicy
from aioloader.sources import ParquetSource, ShardError
from aioloader.sources.parquet_files import open_file
from aioloader.sources.ranges import Ranges

QUICK = FetchPolicy(backoff=0.0)


@both_loops
def test_rows_of_all_files_come_in_their_order(loop: str) -> None:
    """Indices are checked as a list's."""

    async def main() -> None:
        source = await ParquetSource(CountingStore(OBJECTS)).open()
        assert len(source) == ROWS
        assert source.columns == ("label", "image", "text")
        assert source.row_groups[:5] == (
            range(40),
            range(40, 80),
            range(80, 120),
            range(120, 130),
            range(130, 150),
        )
        for number in (0, 1, 129, 130, 149, 150, 299, -1, -300, np.int64(40)):
            assert await source[number] == ALL[number]
        assert await source.fetch(-2) == ALL[-2]
        for wrong, error in ((300, IndexError), (-301, IndexError), (True, TypeError)):
            with pytest.raises(error, match="index="):
                await source[wrong]
        assert repr(source) == "<ParquetSource of counting://: 300 rows>"

    run_on(loop, main())


def test_a_row_group_is_fetched_once_for_all_who_ask() -> None:
    """Neighbouring columns by one request; then it is kept, and rows cost nothing."""
    store = CountingStore(OBJECTS)

    async def main(source: ParquetSource) -> None:
        opening = len(store.asked)
        assert opening == len(OBJECTS)  # footers
        before = source.statistics().bytes, store.bytes_asked
        rows = await asyncio.gather(*(source[number] for number in range(40, 80)))
        assert rows == ALL[40:80]
        assert len(store.asked) - opening == 1
        await asyncio.gather(*(source[number] for number in range(ROWS)))
        assert len(store.asked) - opening == len(source.row_groups)
        figures = source.statistics()
        assert figures.requests - len(store.asked) == store.heads + store.lists == 1
        assert figures.fetched == 40 + ROWS
        assert figures.bytes - before[0] == store.bytes_asked - before[1]

    with_rows(main, store, coalesce_most=ONE_GROUP)


def test_only_the_columns_that_are_wanted_are_fetched() -> None:
    """In the order in which they are named."""
    store = CountingStore(OBJECTS)

    async def main(source: ParquetSource) -> None:
        opening = store.bytes_asked
        assert source.columns == ("text", "label")
        assert list(await source[7]) == ["text", "label"]
        assert store.bytes_asked - opening < 3000

    with_rows(main, store, columns=["text", "label"], coalesce_gap=0)


def test_what_is_kept_is_bounded_and_the_last_row_group_always_is() -> None:
    """The one used longest ago goes first."""
    store = CountingStore({"a.parquet": OBJECTS["rows/0.parquet"]})

    async def main(source: ParquetSource) -> None:
        async def asked(*numbers: int) -> list[tuple[int, int]]:
            del store.asked[:]
            for number in numbers:
                assert await source[number] == ALL[number]
            return [(start, stop) for _, start, stop in store.asked]

        one, two, three = [(await asked(number))[0] for number in (0, 40, 80)]
        if source._cache_bytes == 0:
            assert await asked(81, 82, 0, 1, 80) == [one, three]
        else:
            assert await asked(41, 82, 42, 0, 43, 1, 80) == [one, three]
            assert two not in store.asked

    with_rows(main, store, cache_bytes=0)
    with_rows(main, store, cache_bytes=60_000)


def test_few_row_groups_are_loaded_at_once_where_they_are_large() -> None:
    """As many as half of what may be kept has room for; one at least."""

    async def main(source: ParquetSource) -> None:
        store.gate = asyncio.Event()
        del store.asked[:]
        tasks = [asyncio.ensure_future(source[group[0]]) for group in source.row_groups]
        await until(lambda: len(store.asked) == limit)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(store.asked) == limit
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(asyncio.all_tasks()) == 1
        store.gate = None
        assert await source[0] == ALL[0]

    limit = 1
    store = CountingStore(OBJECTS)
    with_rows(main, store, cache_bytes=0, coalesce_most=ONE_GROUP)
    limit = 2
    store = CountingStore(OBJECTS)
    with_rows(main, store, cache_bytes=100_000, coalesce_most=ONE_GROUP)


def test_one_who_is_cancelled_leaves_the_row_group_to_others() -> None:
    """It is fetched for those who still wait."""

    async def main(source: ParquetSource) -> None:
        store.gate = asyncio.Event()
        one, two = (asyncio.ensure_future(source[number]) for number in (0, 1))
        await until(lambda: len(store.asked) == 4)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        store.gate.set()
        assert await two == ALL[1]

    store = CountingStore(OBJECTS)
    with_rows(main, store)


def test_requests_are_tried_again_and_errors_name_row_and_range() -> None:
    """All who wait for a row group get its error, and it is not tried for each of them."""

    async def main(source: ParquetSource) -> None:
        store.failing = 2
        assert await source[0] == ALL[0]
        store.failing = 100
        before = len(store.asked)
        results = await asyncio.gather(*(source[n] for n in range(40, 60)), return_exceptions=True)
        assert {type(error) for error in results} == {FetchError}
        assert "row 40 could" in str(results[0])
        assert "row 59 could" in str(results[-1])
        assert "rows/0.parquet[" in str(results[-1])
        assert len(store.asked) - before == 6
        store.failing = 0
        assert await source[40] == ALL[40]

    store = CountingStore(OBJECTS)
    with_rows(main, store, policy=QUICK)


def test_a_long_footer_takes_one_more_range() -> None:
    """Of just what is missing of it."""
    data = pa.table({f"column {number}": range(5) for number in range(700)})
    store = CountingStore({"a.parquet": written(data)})

    async def main(source: ParquetSource) -> None:
        assert len(store.asked) == 2
        (_, start, _), (_, begin, end) = store.asked
        assert begin < end == start
        assert await source[3] == {f"column {number}": 3 for number in range(700)}

    with_rows(main, store)


GOOD = OBJECTS["rows/1.parquet"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too short"),
        (GOOD[:-4] + b"PARE", "encrypted"),
        (GOOD[:-1], "no Parquet file, or truncated"),
        (b"PAR1" + bytes(20) + b"PAR1", "footer cannot be read"),
        (GOOD[:-8] + b"\xff\xff\xff\x7f" + b"PAR1", "footer cannot have 2,147,483,647 bytes"),
        (GOOD[:-200] + bytes(192) + GOOD[-8:], "footer cannot be read"),
    ],
)
def test_what_is_no_parquet_file_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    """When the source is opened."""
    with pytest.raises(ShardError, match=rf"a\.parquet, at byte .*{reason}"):
        with_rows(nothing, CountingStore({"a.parquet": data}))


def test_a_damaged_page_is_an_error_where_it_has_a_checksum() -> None:
    """It names file and row group; other row groups are read."""
    data = bytearray(written(table_of(0, 130), write_page_checksum=True, compression="none"))
    data[data.index(b"row 50")] ^= 1
    store = CountingStore({"a.parquet": bytes(data)})

    async def main(source: ParquetSource) -> None:
        assert await source[0] == ALL[0]
        with pytest.raises(FetchError, match=r"row 41 could.*a\.parquet.*row group 1 cannot be"):
            await source[41]

    with_rows(main, store)


def test_a_file_that_has_changed_is_an_error() -> None:
    """Never other bytes."""

    async def main(source: ParquetSource) -> None:
        store.objects["rows/0.parquet"] = written(table_of(1, 130))
        with pytest.raises(FetchError, match="ObjectChanged"):
            await source[0]
        assert await source[140] == ALL[140]

    store = CountingStore(OBJECTS)
    with_rows(main, store)


def test_offsets_that_are_wrong_cost_a_request_and_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of old programs, which forgot the dictionary."""

    async def main() -> None:
        store = CountingStore(OBJECTS)
        source = await ParquetSource(store).open()
        ranges = Ranges(store)
        file = await open_file(ranges, store.info("rows/0.parquet"))
        spans = file.spans(0, source.columns)
        short = [(start, stop - 10) for start, stop in spans]
        monkeypatch.setattr(type(file), "spans", lambda *_: short)
        assert await source[5] == ALL[5]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"cache_bytes": -1}, ValueError, "cache_bytes=-1"),
        ({"cache_bytes": 1.5}, TypeError, "cache_bytes=1.5"),
        ({"columns": "text"}, TypeError, "columns='text'"),
        ({"columns": []}, ValueError, "columns=.. must"),
        ({"columns": ["text", "text"]}, ValueError, "columns=.*each once"),
        ({"columns": ["text", "none"]}, ValueError, r"columns=.'none'. are not among .'label'"),
        ({"files": "none*"}, ValueError, r"files='none\*' matches no object"),
    ],
)
def test_wrong_arguments_are_named(options: Any, error: type[Exception], text: str) -> None:
    """At once, or when it is opened."""
    with pytest.raises(error, match=text):
        with_rows(nothing, CountingStore(OBJECTS), **options)


def test_files_of_other_columns_are_refused() -> None:
    """Unless those are not wanted."""
    other = written(pa.table({"label": pa.array([1], pa.int64()), "text": ["a"]}))
    store = CountingStore({**OBJECTS, "z.parquet": other})
    with pytest.raises(ValueError, match=r"'label' is int64 in z\.parquet, and int32 in rows/0"):
        with_rows(nothing, store)
    with pytest.raises(ValueError, match=r"'image' is none in z\.parquet"):
        with_rows(nothing, store, columns=["image"])
    with_rows(nothing, store, columns=["text"])


def test_before_it_is_open_it_says_what_to_do() -> None:
    """And opening it again costs nothing."""
    store = CountingStore(OBJECTS)
    source = ParquetSource(store)
    with pytest.raises(RuntimeError, match=r"await source\.open\(\)"):
        len(source)

    async def main() -> None:
        await asyncio.gather(source.open(), source.open())
        assert len(store.asked) == 3

    asyncio.run(main())
