"""Leaving a loader while its workers are in items of five seconds, the first of each batch."""

from __future__ import annotations

import gc
import threading
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.loaders import LOADERS, Work
from benchmarks.workloads import Column, Workload

if TYPE_CHECKING:
    from benchmarks.loaders import Row
    from benchmarks.program import Setting

BATCH, ITEM_SECONDS, BEGIN_SECONDS, SETTLE_SECONDS = 8, 5.0, 0.7, 0.5
_HELPERS = (b"resource_tracker", b"forkserver")

WORKLOAD = Workload(
    title="leaving with items of 5 s under way",
    columns={
        "leave_ms": Column("ms"),
        "left": Column("processes and threads left 0.5 s later"),
    },
    loaders=tuple(name for name in LOADERS if name != "ours_vectorized"),
    short=("ours", "torch", "spdl_subprocess"),
    reach="≤ 500 ms, nothing left",
    rounds=3,
    short_rounds=2,
)


def load(item: int, arrays: Row, seed: int | None) -> None:
    if item >= BATCH and item % BATCH == 0:
        time.sleep(ITEM_SECONDS)
    arrays["x"][...] = item


def workers() -> list[int]:
    """Return the processes below this one that run and are no helpers for others."""
    from benchmarks.consumer import tree

    found = []
    for pid in tree()[1:]:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if command and not any(name in command for name in _HELPERS):
            found.append(pid)
    return found


def leave(epoch: Any) -> float:
    """Take a batch, wait until the next ones are under way, and leave."""
    with epoch as batches:
        next(batches)
        time.sleep(BEGIN_SECONDS)
        started = time.perf_counter()
        getattr(batches, "close", lambda: None)()
        del batches
    del epoch
    gc.collect()
    return time.perf_counter() - started


async def leave_async(epoch: Any) -> float:
    """Do the same."""
    import asyncio

    async with epoch as batches:
        await anext(batches)
        await asyncio.sleep(BEGIN_SECONDS)
        started = time.perf_counter()
    return time.perf_counter() - started


def run(setting: Setting) -> dict[str, Any]:
    """Leave, and count who is still there a while later."""
    import jax

    from benchmarks.consumer import run as run_loop

    jax.devices()
    threads = threading.active_count()
    given = Work(range(BATCH * 8), {"x": ((8,), "int32")}, load, BATCH)
    epoch = setting.adapter.epoch(given)
    if isinstance(epoch, AbstractAsyncContextManager):
        seconds = run_loop(leave_async(epoch))
    else:
        seconds = leave(epoch)
        del epoch
    time.sleep(SETTLE_SECONDS)
    left = len(workers()) + max(0, threading.active_count() - threads)
    return {"leave_ms": seconds * 1e3, "left": left, "wrong": ""}
