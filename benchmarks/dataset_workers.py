"""`mp_prefetch`: large and small elements by two workers, beside Grain where that is there."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import importlib.util
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aioloader import MapDataset, MultiprocessingOptions

if TYPE_CHECKING:
    from collections.abc import Callable

WORKERS = 2
ROUNDS = 5
WARM_SECONDS = 0.5
SECONDS = 1.0
ENDLESS = 1 << 40
SIZES = {"1 MiB": 1 << 20, "256 bytes": 256}


class Make:
    """Return an array of so many bytes that tells its index."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def __call__(self, index: int) -> np.ndarray:
        return np.full(self.nbytes // 4, index, np.int32)


def ours(make: Make) -> Any:
    dataset = MapDataset.range(ENDLESS).map(make).to_iter_dataset()
    return dataset.mp_prefetch(MultiprocessingOptions(num_workers=WORKERS))


def grains(make: Make) -> Any:
    grain = importlib.import_module("grain")
    importlib.import_module("absl.flags").FLAGS.mark_as_parsed()  # as `absl.app.run` does
    dataset = grain.MapDataset.range(ENDLESS).map(make).to_iter_dataset()
    return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=WORKERS))


def computed(pid: int | str = "self") -> float:
    """Return the seconds that a process and all below it have computed."""
    ticks = 0.0
    with contextlib.suppress(OSError):  # it has ended meanwhile
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            ticks += sum(map(computed, path.read_text().split()))
    return ticks


class Rate:
    """Counts the elements of the seconds that count, and checks each."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.since = 0.0
        self.first = self.count = 0

    def take(self, index: int, element: np.ndarray) -> bool:
        """Take an element; returns whether that was the last one."""
        assert element[0] == element[-1] == index
        now = time.perf_counter()
        if not self.since:
            if now - self.began > WARM_SECONDS:
                self.since, self.first, self.before = now, index, computed()
            return False
        if now - self.since < SECONDS:
            return False
        self.count, self.seconds = index - self.first, now - self.since
        self.computed = computed() - self.before
        return True

    @property
    def result(self) -> tuple[float, float]:
        """Elements a second, and elements for each second that was computed."""
        return self.count / self.seconds, self.count / self.computed


def read(dataset: Any) -> tuple[float, float]:
    iterator = iter(dataset)
    element = next(iterator)  # which the workers' start belongs to
    rate = Rate()
    for index, element in enumerate(iterator, 1):
        if rate.take(index, element):
            break
    iterator.close()
    return rate.result


def read_async(dataset: Any) -> tuple[float, float]:
    async def reading() -> tuple[float, float]:
        async with aiter(dataset) as iterator:
            element = await anext(iterator)
            rate, index = Rate(), 0
            async for element in iterator:
                index += 1
                if rate.take(index, element):
                    break
            return rate.result

    return asyncio.run(reading())


def main() -> None:
    ways: dict[str, tuple[Callable[[Make], Any], Callable[[Any], tuple[float, float]]]] = {
        "for": (ours, read),
        "async for": (ours, read_async),
    }
    if importlib.util.find_spec("grain") is not None:
        ways["Grain"] = (grains, read)
    for name, nbytes in SIZES.items():
        rates: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, (build, drive) in ways.items():
                rates[way].append(drive(build(Make(nbytes))))
                gc.collect()
        report(name, nbytes, rates)


def report(name: str, nbytes: int, rates: dict[str, list[tuple[float, float]]]) -> None:
    """Print medians over the rounds, by the clock and by what processors have computed."""
    for way, found in rates.items():
        middle, by_cpu = (statistics.median(column) for column in zip(*found, strict=True))
        print(
            f"   {name}, {way:9} {middle:10,.0f} elements/s  {middle * nbytes / 1e9:6.2f} GB/s  "
            f"{1e6 / by_cpu:8,.1f} us computed for each{against(found, rates.get('Grain'))}"
        )


def against(found: list[tuple[float, float]], peers: list[tuple[float, float]] | None) -> str:
    """Return the ratios to a peer, each in its round."""
    if peers is None or found is peers:
        return ""
    text = ""
    for column, unit in enumerate(("by the clock", "by computing")):
        ratios = [own[column] / its[column] for own, its in zip(found, peers, strict=True)]
        text += f"\n      {statistics.median(ratios):6.1f} x Grain {unit}"
        text += f" ({min(ratios):.1f} to {max(ratios):.1f})"
    return text


if __name__ == "__main__":
    main()
