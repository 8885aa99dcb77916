"""The event loop's lag, sampled every millisecond, idle and beside loads of several kinds."""

from __future__ import annotations

import asyncio
import tempfile
import time
from typing import Any

import numpy as np

from aioloader import DataGroup, Loader, run, wait_ready

ROUNDS, CACHED, STARTING_SECONDS = 3, 32, 0.6
Lags = list[float]


class Ticker:
    """Sleeps for a millisecond again and again, and notes how much later it woke."""

    def __init__(self) -> None:
        self.lags: Lags = []

    async def __aenter__(self) -> Ticker:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            started = time.perf_counter()  # a uvloop clock steps by whole milliseconds
            await asyncio.sleep(0.001)
            self.lags.append(time.perf_counter() - started - 0.001)


def load_large(item: int, arrays: Any, seed: int | None) -> None:
    arrays["x"][...] = item % 251


def load_tiny(item: int, arrays: Any, seed: int | None) -> None:
    arrays["x"][...] = item


async def idle(seconds: float) -> Lags:
    async with Ticker() as ticker:
        await asyncio.sleep(seconds)
    return ticker.lags


async def beside(load: Any, group: DataGroup[int], batches: int) -> Lags:
    loader = Loader(load, group, num_workers=2, depth=4, end_at=("batch", batches))
    async with loader:
        await wait_ready((await anext(loader)).arrays["x"])
        await asyncio.sleep(STARTING_SECONDS)  # workers start once, and batches come for hours
        async with Ticker() as ticker:
            async for batch in loader:
                await wait_ready(batch.arrays["x"])
                del batch
    return ticker.lags


def percentile(lags: Lags, share: float) -> float:
    return float(np.percentile(np.asarray(lags), share)) * 1e3


def large_group(items: int, **options: Any) -> DataGroup[int]:
    arrays = {"x": ((1 << 20,), "uint8", "uint8")}
    return DataGroup(32, range(items), loader_arrays=arrays, **options)


async def measure() -> dict[str, Lags]:
    large = large_group(10**6)
    tiny = DataGroup(256, range(10**6), loader_arrays={"x": ((8,), "int32", "int32")})
    names = ("idle", "32 MiB batches", "100,000 tiny rows", "32 MiB written", "32 MiB read")
    lags: dict[str, Lags] = {name: [] for name in names}
    for _ in range(ROUNDS):
        lags["idle"] += await idle(1.0)
        with tempfile.TemporaryDirectory() as folder:
            cached = large_group(32 * CACHED, cache_location=folder)
            lags["32 MiB written"] += await beside(load_large, cached, CACHED)
            lags["32 MiB read"] += await beside(load_large, cached, 4 * CACHED)
        lags["32 MiB batches"] += await beside(load_large, large, 150)
        lags["100,000 tiny rows"] += await beside(load_tiny, tiny, 100_000 // 256 + 1)
    return lags


def main() -> None:
    for name, runner in (("asyncio", asyncio.run), ("uvloop", run)):
        lags = runner(measure())  # type: ignore[operator]
        base = percentile(lags["idle"], 99)
        for kind, samples in lags.items():
            p99 = percentile(samples, 99)
            print(
                f"{name:8s} {kind:18s} lag p50 {percentile(samples, 50):5.2f}  p99 {p99:5.2f}  "
                f"max {max(samples) * 1e3:5.2f} ms; p99 beyond idle {p99 - base:+.2f} ms "
                f"({len(samples)} samples)"
            )


if __name__ == "__main__":
    main()
