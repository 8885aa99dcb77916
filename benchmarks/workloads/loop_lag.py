"""The event loop's lag, sampled every millisecond beside other workloads, against an idle loop.

Loaders that block are asked for batches in a thread, as a program with a loop would do it.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.loaders import LOADERS
from benchmarks.workloads import Column, Workload, decode

if TYPE_CHECKING:
    from benchmarks.consumer import Consumer
    from benchmarks.program import Setting

_IDLE_SECONDS, _TICK = 1.0, 0.001
_EPOCHS = {("tiny", "ours"): 5, ("large", "ours"): 5}
_OTHERS = ("hydrax", "grain_threads", "torch", "spdl_threads", "asyncio_pool")

WORKLOAD = Workload(
    title="lag of the event loop beside a workload",
    columns={
        "p99_ms": Column("p99 beyond idle, ms", "{:.2f}"),
        "max_ms": Column("max, ms", "{:.1f}"),
        "idle_ms": Column("p99 of the idle loop, ms", "{:.2f}"),
    },
    loaders=tuple(name for name in LOADERS if name != "ours_vectorized"),
    short=("ours",),
    cases=("tiny", "large", "decode"),
    reach="p99 within 1 ms of idle, max ≤ 10 ms",
    prepares=True,
)
prepare = decode.prepare


class Ticker:
    """Sleeps for a millisecond again and again, and notes how much later it woke."""

    def __init__(self) -> None:
        self.ticks: list[tuple[float, float]] = []
        self._marks: list[float] = []

    def mark(self, begins: bool) -> None:
        """Note a time between which and another one ticks count."""
        self._marks.append(time.perf_counter())

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            started = time.perf_counter()
            await asyncio.sleep(_TICK)
            self.ticks.append((started, time.perf_counter()))

    @property
    def lags(self) -> np.ndarray:
        """The milliseconds by which ticks between the marks were late."""
        first, last = self._marks
        inside = [end - start - _TICK for start, end in self.ticks if start > first and end < last]
        return np.asarray(inside) * 1e3


async def _idle() -> np.ndarray:
    ticker = Ticker()
    task = asyncio.create_task(ticker.run())
    await asyncio.sleep(0.05)
    ticker.mark(True)
    await asyncio.sleep(_IDLE_SECONDS)
    ticker.mark(False)
    task.cancel()
    return ticker.lags


async def _beside(epoch: Any, consumer: Consumer) -> np.ndarray:
    ticker = Ticker()
    consumer.on_mark = ticker.mark
    task = asyncio.create_task(ticker.run())
    if isinstance(epoch, AbstractAsyncContextManager):
        async with epoch as batches:
            async for batch in batches:
                consumer.take(batch)
                del batch
    else:
        with epoch as batches:
            while await asyncio.to_thread(_step, batches, consumer):
                pass
    task.cancel()
    return ticker.lags


def _step(batches: Any, consumer: Consumer) -> bool:
    batch = next(batches, None)
    if batch is not None:
        consumer.take(batch)
    return batch is not None


def run(setting: Setting) -> dict[str, Any]:
    """Run one epoch of another workload, and sample beside it."""
    from benchmarks.consumer import ENDS, Consumer
    from benchmarks.consumer import run as run_loop

    module = importlib.import_module(f"benchmarks.workloads.{setting.case}")
    more = _EPOCHS.get((setting.case, setting.loader))
    given = module.work(setting, more) if more else module.work(setting)
    proof = decode.proof(given) if module is decode else ENDS
    adapter = setting.adapter
    idle = run_loop(_idle())
    consumer = Consumer(given, proof)
    lags = run_loop(_beside(adapter.epoch(given), consumer))
    base = float(np.percentile(idle, 99))
    figures = {"p99_ms": float(np.percentile(lags, 99)) - base, "max_ms": float(lags.max())}
    return figures | {"idle_ms": base, "samples": len(lags), "wrong": consumer.verdict()}
