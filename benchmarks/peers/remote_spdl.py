"""SPDL's pipeline: a coroutine function of the same client, as many at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from spdl.pipeline import PipelineBuilder

from benchmarks.peers.remote_task import CLIENTS, stacked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.peers.remote_task import Digest, Task


def epochs(task: Task, digest: Digest) -> Iterator[Iterator[Any]]:
    """Yield epochs; its loop is a new one each time, and so are its connections."""
    while True:
        yield epoch(task)


def epoch(task: Task) -> Iterator[Any]:
    opened: list[Any] = []
    lock = asyncio.Lock()

    async def fetch(number: int) -> Any:
        async with lock:
            if not opened:
                opened.append(CLIENTS[task.client](task))
                opened.append(await opened[0].__aenter__())
        return await opened[1](number)

    pipeline = (
        PipelineBuilder()
        .add_source(range(task.count))
        .pipe(fetch, concurrency=task.concurrency, output_order="input")
        .aggregate(task.batch_size)
        .pipe(stacked, concurrency=1)
        .add_sink(task.depth)
        .build(num_threads=2)
    )
    with pipeline.auto_stop():
        yield from pipeline.get_iterator(timeout=60)
