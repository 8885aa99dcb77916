"""Recovery from a killed worker, and leaving while workers are busy: seconds, and what is lost."""

from __future__ import annotations

import os
import signal
import statistics
import time
from typing import Any

import anyio

from aioloader import DataGroup, Loader, run
from aioloader.testing import no_leaks

ROUNDS = 5


def load(item: int, arrays: Any, seed: int | None) -> None:
    time.sleep(0.001)
    arrays["x"][...] = item


def stuck(item: int, arrays: Any, seed: int | None) -> None:
    time.sleep(5)


def group() -> DataGroup[int]:
    return DataGroup(8, range(1600), loader_arrays={"x": ((16,), "int32", "int32")})


async def recovery() -> tuple[float, bool]:
    """Kill a worker in the middle of an epoch; returns the longest gap, and if all came."""
    seen: list[int] = []
    async with Loader(load, group(), num_workers=2, end_at=("epoch", 1)) as loader:
        last = gap = 0.0
        async for batch in loader:
            now = time.perf_counter()
            if batch.batch_num >= 100:
                gap = max(gap, now - last)
            last = now
            if batch.batch_num == 100:
                os.kill(loader._executor.worker_pids[0], signal.SIGKILL)
            seen += batch.indices
    return gap, seen == list(range(1600))


async def leaving() -> float:
    with no_leaks():
        async with Loader(stuck, group(), num_workers=2) as loader:
            with anyio.move_on_after(0.7):  # by then both have begun
                await anext(loader)
            started = time.perf_counter()
        return time.perf_counter() - started


def main() -> None:
    gaps = [run(recovery()) for _ in range(ROUNDS)]
    seconds = [gap for gap, _ in gaps]
    print(
        f"a worker killed: gap to the next batch {statistics.median(seconds) * 1e3:.0f} ms "
        f"(worst {max(seconds) * 1e3:.0f}), every row delivered: {all(ok for _, ok in gaps)}"
    )
    left = [run(leaving()) for _ in range(ROUNDS)]
    print(
        f"leaving with a 5 s item in every worker: {statistics.median(left) * 1e3:.0f} ms "
        f"(worst {max(left) * 1e3:.0f}), nothing left"
    )


if __name__ == "__main__":
    main()
