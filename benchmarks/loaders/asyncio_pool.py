"""What one writes without a loader: a process pool, a call for each batch, a few under way."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from benchmarks.loaders import context_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.loaders import Row, Work

PACKAGES = ()


@asynccontextmanager
async def epoch(work: Work) -> AsyncIterator[AsyncIterator[Row]]:
    """Open one epoch."""
    context = multiprocessing.get_context(context_name())
    with ProcessPoolExecutor(work.num_workers, mp_context=context) as pool:
        yield batches(work, pool)
        pool.shutdown(wait=True, cancel_futures=True)


async def batches(work: Work, pool: ProcessPoolExecutor) -> AsyncIterator[Row]:
    """Yield batches, in order or as they are done."""
    loop = asyncio.get_running_loop()
    under_way: deque[asyncio.Future[Row]] = deque()
    cuts = iter(work.cuts)
    while True:
        while len(under_way) < work.depth and (items := next(cuts, None)) is not None:
            under_way.append(loop.run_in_executor(pool, work.batch, items))
        if not under_way:
            return
        if not work.ordered:
            done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            under_way.remove(one := done.pop())
            under_way.appendleft(one)
            del one, done
        yield await under_way.popleft()
