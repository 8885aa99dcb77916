"""From a thousand items to a billion: set-up, resume and first batch, in time and memory."""

from __future__ import annotations

import statistics
import time
import tracemalloc
from typing import Any

from aioloader import DataGroup, Loader, run

ROUNDS = 9
LENGTHS = (10**3, 10**5, 10**7, 10**9)


def load(item: int, arrays: Any, seed: int | None) -> None:
    arrays["x"][...] = item


async def first_batch(length: int, epoch: int, *, trace: bool) -> tuple[float, int]:
    if trace:
        tracemalloc.start()
    started = time.perf_counter()
    arrays = {"x": ((16,), "int32", "int32")}
    group = DataGroup(8, range(length), loader_arrays=arrays, shuffle_first=True)
    async with Loader(load, group, start_at=(epoch, 0), num_workers=0) as loader:
        await anext(loader)
        seconds = time.perf_counter() - started
    peak = 0
    if trace:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return seconds, peak


def main() -> None:
    run(first_batch(LENGTHS[0], 4, trace=False))
    seconds: dict[int, list[float]] = {length: [] for length in LENGTHS}
    peaks: dict[int, int] = {}
    for _ in range(ROUNDS):
        for length in LENGTHS:
            seconds[length].append(run(first_batch(length, 4, trace=False))[0])
    for length in LENGTHS:
        peaks[length] = run(first_batch(length, 4, trace=True))[1]
    base = statistics.median(seconds[LENGTHS[0]])
    for length in LENGTHS:
        median = statistics.median(seconds[length])
        spread = max(seconds[length]) - min(seconds[length])
        print(
            f"n = {length:>13,}: first batch of epoch 4, shuffled by item: {median * 1e3:6.2f} ms "
            f"(x {median / base:.2f}, spread {spread * 1e3:.2f} ms), "
            f"peak {peaks[length] / 1024:.0f} KiB"
        )


if __name__ == "__main__":
    main()
