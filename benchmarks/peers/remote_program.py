"""The program that is measured: one epoch to warm up, and another one that counts.

``python -m benchmarks.peers.remote_program LOADER TASK``, the task as JSON. It prints seconds,
CPU seconds of all its processes, what it waited for each batch, the loop's lag and a digest.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import resource
import sys
import time
from typing import Any

import jax
import uvloop

from benchmarks.lag import Ticker
from benchmarks.peers.remote_task import Digest, Task

_IDLE_SECONDS = 1.0


class Figures:
    """What is measured of an epoch."""

    def __init__(self, digest: Digest) -> None:
        self._digest = digest
        self._cpu = cpu_seconds()
        self._started = self._asked = time.perf_counter()
        self.waits: list[float] = []
        self._times: list[float] = []

    def take(self, batch: Any) -> None:
        """Note a batch: it ends as an array of JAX's, and is added up."""
        self.waits.append(time.perf_counter() - self._asked)
        if batch is not None:
            batch = jax.block_until_ready(jax.device_put(batch))
            self._digest.add_batch(batch)
        self._times.append(time.perf_counter())
        self._asked = time.perf_counter()

    def result(self) -> dict[str, Any]:
        """Return them."""
        seconds, cpu = time.perf_counter() - self._started, cpu_seconds() - self._cpu
        found = {"digest": self._digest.value, "rows": self._digest.rows, "waits": self.waits}
        # Between a tenth and eight tenths of the batches: at its end an epoch waits for slow
        # objects with nothing left to do meanwhile, whoever loads it.
        count = len(self._times)
        first, last = count // 10, count * 8 // 10
        batches = (last - first) / (self._times[last] - self._times[first]) if count > 9 else 0.0
        return {"seconds": seconds, "cpu": cpu, "middle": batches, **found}


def cpu_seconds() -> float:
    """Return those of this process, and of its children that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


def measure(made: Any, digest: Digest) -> dict[str, Any]:
    """Iterate over two epochs."""
    for _ in next(made):
        pass
    digest.__init__()  # type: ignore[misc]
    figures = Figures(digest)
    for batch in next(made):
        figures.take(batch)
        del batch
    return figures.result()


def percentile(lags: list[float], share: float) -> float:
    return sorted(lags)[int(share * len(lags))]


async def measure_async(made: Any, digest: Digest) -> dict[str, Any]:
    """Do the same with asynchronous ones, and sample the loop meanwhile."""
    async with Ticker() as idle:
        await asyncio.sleep(_IDLE_SECONDS)
    async for _ in await anext(made):
        pass
    digest.__init__()  # type: ignore[misc]
    figures = Figures(digest)
    async with Ticker() as ticker:
        async for batch in await anext(made):
            figures.take(batch)
            del batch
    lags = {"lag": percentile(ticker.lags, 0.99), "idle_lag": percentile(idle.lags, 0.99)}
    result = {**figures.result(), **lags}
    await made.aclose()
    return result


def main(loader: str, text: str) -> None:
    digest = Digest()
    made = importlib.import_module(f"benchmarks.peers.remote_{loader}").epochs(
        Task(**json.loads(text)), digest
    )
    jax.devices()  # its start is not what is measured
    if inspect.isasyncgen(made):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(measure_async(made, digest))
    else:
        result = measure(made, digest)
    print(json.dumps(result), flush=True)
    os._exit(0)  # whatever a loader does at the program's end is no part of it


if __name__ == "__main__":
    main(*sys.argv[1:])
