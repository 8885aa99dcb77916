"""What one writes without a loader: a process pool, and `asyncio.gather` for each batch."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from benchmarks.peers import Row, Work, stacked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PACKAGES = ()


@asynccontextmanager
async def epoch(work: Work) -> AsyncIterator[AsyncIterator[Row]]:
    """Open one epoch."""
    with ProcessPoolExecutor(work.num_workers) as pool:
        yield Batches(work, pool)


class Batches:
    """Batches in order, a few of them under way."""

    def __init__(self, work: Work, pool: ProcessPoolExecutor) -> None:
        self._work = work
        self._pool = pool
        self._item_batches = iter(work.item_batches())
        self._under_way: deque[asyncio.Task[Row]] = deque()

    def __aiter__(self) -> Batches:
        return self

    async def __anext__(self) -> Row:
        while len(self._under_way) < self._work.depth:
            items = next(self._item_batches, None)
            if items is None:
                break
            self._under_way.append(asyncio.create_task(self._batch(items)))
        if not self._under_way:
            raise StopAsyncIteration
        return await self._under_way.popleft()

    async def _batch(self, items: object) -> Row:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(self._pool, self._work.row, item) for item in items]
        return stacked(await asyncio.gather(*calls))
