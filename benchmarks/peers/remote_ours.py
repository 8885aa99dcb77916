"""aioloader: `Fetch` under a policy, and a loader that decodes meanwhile."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from aioloader import DataGroup, Fetch, FetchPolicy, Loader
from benchmarks.peers.remote_task import CLIENTS, OBJECT_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.peers.remote_task import Digest, Task


async def epochs(task: Task, digest: Digest) -> AsyncIterator[AsyncIterator[Any]]:
    """Yield epochs."""
    policy = FetchPolicy(concurrency=task.concurrency, hedge_quantile=task.hedge)
    arrays = {"x": ((OBJECT_BYTES,), "uint8", "uint8")}
    group = DataGroup(
        task.batch_size, range(task.count), loader_arrays=arrays, drop_remainder=False
    )
    times = task.decode

    def load(payload: Any, arrays: Any, seed: int | None) -> None:
        for _ in range(times):
            hashlib.sha256(payload)
        arrays["x"][...] = np.frombuffer(payload, np.uint8)

    async with CLIENTS[task.client](task) as function:
        fetch = Fetch(function, policy)

        def open_loader(**more: Any) -> Loader[int]:
            settings = {"num_workers": task.workers, "depth": task.depth, **more}
            return Loader(load, group, fetch=fetch, deterministic=task.ordered, **settings)

        async def epoch(loader: Loader[int]) -> AsyncIterator[Any]:
            for _ in range(loader.batches_per_epoch):
                yield (await anext(loader)).arrays["x"]

        async def alone() -> AsyncIterator[Any]:
            async with open_loader(end_at=("epoch", 1)) as loader:
                async for batch in loader:
                    yield batch.arrays["x"]
                    del batch

        if not task.ordered:  # batches of the next epoch might come before the last of this one
            while True:
                yield alone()
        async with open_loader() as loader:
            while True:
                yield epoch(loader)
