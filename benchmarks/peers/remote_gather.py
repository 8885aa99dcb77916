"""The limit: `asyncio.gather` over all objects and a semaphore, and nothing made of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from benchmarks.peers.remote_task import CLIENTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.peers.remote_task import Digest, Task


async def epochs(task: Task, digest: Digest) -> AsyncIterator[AsyncIterator[None]]:
    """Yield epochs."""
    async with CLIENTS[task.client](task) as fetch:

        async def epoch() -> AsyncIterator[None]:
            room = asyncio.Semaphore(task.concurrency)

            async def one(number: int) -> None:
                async with room:
                    digest.add(await fetch(number))

            await asyncio.gather(*(one(number) for number in range(task.count)))
            yield None

        while True:
            yield epoch()
