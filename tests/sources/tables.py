"""Parquet files for tests."""

from __future__ import annotations

import asyncio
import io
import random
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from aioloader.sources import ParquetSource

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


ROWS, GROUP = 300, 40
ONE_GROUP = 25_000  # bytes, of which two have more


def written(table: pa.Table, **options: Any) -> bytes:
    """Return a table as a Parquet file."""
    raw = io.BytesIO()
    pq.write_table(table, raw, **{"row_group_size": GROUP, **options})
    return raw.getvalue()


def table_of(first: int, count: int) -> pa.Table:
    """Return rows of which each tells its number, one of the columns far longer than others."""
    rng = random.Random(first)
    numbers = range(first, first + count)
    return pa.table(
        {
            "label": pa.array(numbers, pa.int32()),
            "image": [rng.randbytes(500 + number % 7) for number in numbers],
            "text": [f"row {number}" for number in numbers],
        }
    )


TABLES = [table_of(0, 130), table_of(130, 20), table_of(150, 150)]
OBJECTS = {f"rows/{n}.parquet": written(table) for n, table in enumerate(TABLES)}
ALL = [row for table in TABLES for row in table.to_pylist()]


def with_rows(
    main: Callable[[ParquetSource], Coroutine[Any, Any, Any]],
    store: Any,
    *args: Any,
    **options: Any,
) -> Any:
    """Run a function of an open source to its end."""

    async def run() -> Any:
        async with ParquetSource(store, *args, **options) as source:
            return await main(source)

    return asyncio.run(run())


async def nothing(source: ParquetSource) -> None:
    """Do nothing."""
