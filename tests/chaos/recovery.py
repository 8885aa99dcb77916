"""Recovery: a worker killed again and again, what is delivered, and how long that takes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import time

import cloudpickle
import numpy as np

from aioloader import DataGroup, Loader
from chaos import consuming
from chaos.consuming import ARRAYS, load

SIZE = 10
EVERY = 50


async def run(items: int, *, kill: bool) -> tuple[str, list[float], int]:
    """Return the digest of an epoch, the longest gap after each kill, and the deaths.

    A gap is the time between two batches; the batches that were ready when the worker was
    killed come at once, so that the longest of those up to the next kill is what counts.
    The next is killed when the last one's death was seen: to kill a dead one is to kill none.
    """
    group = DataGroup(SIZE, range(items), loader_arrays=ARRAYS, shuffle_later="itemwise")
    loader = Loader(load, group, num_workers=2, end_at=("epoch", 1))
    digest, gaps, count = hashlib.blake2b(digest_size=16), [0.0], 0
    async with loader:
        last = time.perf_counter()
        async for batch in loader:
            gaps[-1] = max(gaps[-1], time.perf_counter() - last)
            digest.update(np.asarray(batch.arrays["x"]).tobytes())
            digest.update(repr(dict(batch.additional)).encode())
            count += SIZE
            del batch
            last = time.perf_counter()
            if kill and count % EVERY == 0:
                pids = await _next_workers(loader, deaths=len(gaps) - 1)
                gaps[-1] = max(gaps[-1], time.perf_counter() - last)
                last = time.perf_counter()
                os.kill(pids[count // EVERY % len(pids)], signal.SIGKILL)
                gaps.append(0.0)
        return digest.hexdigest(), gaps[1:], loader.statistics().worker_deaths


async def _next_workers(loader: Loader, deaths: int) -> list[int]:
    """Return the workers' process ids once `deaths` have been seen and made good."""
    while loader.statistics().worker_deaths < deaths or not loader._executor.worker_pids:
        await asyncio.sleep(1e-3)
    return loader._executor.worker_pids


def main(items: int = 10_000) -> int:
    """Kill a worker every `EVERY` items; returns 1 if anything is other than in a clean run."""
    with contextlib.suppress(ValueError):  # as a program's own `load` is; its module imports jax
        cloudpickle.register_pickle_by_value(consuming)
    clean, _, _ = asyncio.run(run(items, kill=False))
    killed, gaps, deaths = asyncio.run(run(items, kill=True))
    p50, p99 = np.percentile(gaps, [50, 99])
    print(
        f"{items} items, a worker killed every {EVERY}: {deaths} died, digest "
        f"{'right' if killed == clean else 'WRONG'}; gap to the next batch p50 {p50 * 1e3:.0f} ms, "
        f"p99 {p99 * 1e3:.0f} ms, longest {max(gaps) * 1e3:.0f} ms"
    )
    return int(killed != clean or p99 > 0.5)
