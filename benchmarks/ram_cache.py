"""The RAM cache: the second epoch against the first, for a loader that takes a millisecond."""

from __future__ import annotations

import statistics
import time

import numpy as np

from aioloader import DataCache, run

ROUNDS, ROWS = 5, 500
CONFIG = {"data_set": {"use_cache": True, "preload_cache": False}}


class Slow:
    """Rows of an image's size, a millisecond each."""

    def __len__(self) -> int:
        return ROWS

    def resolve_data(self, index: int) -> dict[str, object]:
        time.sleep(0.001)
        return {"image": np.full((64, 64, 3), index % 256, np.uint8), "label": index}


async def epoch(cache: DataCache) -> float:
    started = time.perf_counter()
    for index in range(ROWS):
        row = await cache.get_or_load(index)
        assert row["label"] == index
    return time.perf_counter() - started


async def preloaded(cache: DataCache) -> float:
    started = time.perf_counter()
    await cache.preload()
    return time.perf_counter() - started


async def one_round() -> tuple[float, float, float]:
    """Return the seconds of two epochs, and of preloading another cache."""
    cache = DataCache(CONFIG, Slow())
    first, second = await epoch(cache), await epoch(cache)
    now = cache.statistics()
    assert (now.hits, now.misses) == (ROWS, ROWS)
    return first, second, await preloaded(DataCache(CONFIG, Slow()))


def main() -> None:
    rounds = [run(one_round()) for _ in range(ROUNDS)]
    first, second, preload = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratios = sorted(one / two for one, two, _ in rounds)
    ratio = statistics.median(ratios)
    print(f"first epoch {first * 1e6 / ROWS:.0f} µs a row, second {second * 1e6 / ROWS:.1f} µs")
    print(f"ratio {ratio:.0f} (median of {ROUNDS} rounds, {ratios[0]:.0f} to {ratios[-1]:.0f})")
    print(
        f"preloading, 4 workers: {preload * 1e6 / ROWS:.0f} µs a row, {first / preload:.1f} times"
    )


if __name__ == "__main__":
    main()
