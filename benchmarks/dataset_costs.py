"""What an element of a dataset costs by index and by iteration, beside Grain if that is there."""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib
import importlib.util
import itertools
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

import aioloader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Measurement = Callable[[], float]

ROUNDS = 5
INDICES = 20_000
LENGTH = 1 << 20
DRAWN = 10_000
WARM = 2_000
BUFFERS = (16, 128, 500)
THREADS = 16
ROWS, WIDTH, BATCH = 60_000, 784, 256


def double(x: int) -> int:
    return 2 * x


def jitter(x: int, rng: np.random.Generator) -> float:
    return x + rng.random()


def pipelines(library: Any) -> dict[str, Any]:
    """Return datasets of one library or the other: the same program for both."""
    numbers = library.MapDataset.range(LENGTH)
    halves = [library.MapDataset.range(LENGTH), library.MapDataset.range(LENGTH)]
    return {
        "map": numbers.map(double),
        "shuffle, map": numbers.seed(1).shuffle().map(double),
        "random_map": numbers.seed(1).random_map(jitter),
        "mix of two": library.MapDataset.mix(halves, [0.7, 0.3]).map(double),
        "map, batch 16": numbers.map(double).batch(16),
        "8 x map": several(numbers, 8),
    }


def several(dataset: Any, count: int) -> Any:
    for _ in range(count):
        dataset = dataset.map(double)
    return dataset


def by_index(dataset: Any) -> float:
    """Return the seconds that an element takes."""
    began = time.perf_counter()
    for index in range(INDICES):
        dataset[index]
    return (time.perf_counter() - began) / INDICES


def by_iteration(dataset: Any) -> float:
    """Return the seconds that an element takes once the buffer has been filled."""
    iterator = iter(dataset)
    try:
        for _ in itertools.islice(iterator, WARM):
            pass
        began = time.perf_counter()
        for _ in itertools.islice(iterator, DRAWN):
            pass
        return (time.perf_counter() - began) / DRAWN
    finally:
        if hasattr(iterator, "close"):
            iterator.close()


def by_async_iteration(dataset: Any) -> float:
    """Return the same for ``async for``."""

    async def iterate() -> float:
        began, count = 0.0, 0
        async with aiter(dataset) as iterator:
            async for _ in iterator:
                count += 1
                if count == WARM:
                    began = time.perf_counter()
                elif count == WARM + DRAWN:
                    break
        return (time.perf_counter() - began) / DRAWN

    return asyncio.run(iterate())


def all_of(batches: Any) -> float:
    """Return the seconds that a row takes, when all batches are gone through."""
    began, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch)
    seconds = time.perf_counter() - began
    assert count == ROWS
    return seconds / ROWS


def all_indexed(dataset: Any) -> float:
    return all_of(dataset[index] for index in range(len(dataset)))


def main() -> None:
    libraries = {"aioloader": aioloader}
    if importlib.util.find_spec("grain") is not None:
        libraries["Grain"] = importlib.import_module("grain")
    else:
        print("   Grain is not installed; `make bench-setup` does that")
    print("   by index:")
    for case in pipelines(aioloader):
        ways = {name: index_of(library, case) for name, library in libraries.items()}
        report(case, measure(ways))
    iterations(libraries)
    in_memory(libraries)


def index_of(library: Any, case: str) -> Measurement:
    return functools.partial(by_index, pipelines(library)[case])


def iterations(libraries: Mapping[str, Any]) -> None:
    """Print what iteration costs, with one buffer and another."""
    print(f"   by iteration, shuffle and map, {THREADS} threads:")
    own: dict[str, list[float]] = {}
    for size in BUFFERS:
        ways: dict[str, Measurement] = {}
        for name, library in libraries.items():
            dataset = reading(library, size)
            ways[name] = functools.partial(by_iteration, dataset)
            if library is aioloader:
                ways["async for"] = functools.partial(by_async_iteration, dataset)
        found = measure(ways)
        report(f"buffer of {size}", found)
        for way, seconds in found.items():
            own.setdefault(way, []).append(statistics.median(seconds))
    for way, medians in own.items():
        print(f"      {way}: the slowest buffer is {max(medians) / min(medians):.2f} x the fastest")


def reading(library: Any, size: int) -> Any:
    options = library.ReadOptions(num_threads=THREADS, prefetch_buffer_size=size)
    return pipelines(library)["shuffle, map"].to_iter_dataset(options)


def in_memory(libraries: Mapping[str, Any]) -> None:
    """Print what batches of an array's rows in random order cost, beside NumPy's own."""
    print(f"   {ROWS:,} rows of {WIDTH} bytes, shuffled, in batches of {BATCH}:")
    array = np.random.default_rng(0).integers(0, 256, (ROWS, WIDTH), np.uint8)
    order = np.random.default_rng(1).permutation(ROWS)
    starts = range(0, ROWS, BATCH)
    ways: dict[str, Measurement] = {
        "array[permutation]": lambda: all_of(array[order] for _ in range(1)),
        "and by batches": lambda: all_of(array[order[k : k + BATCH]] for k in starts),
    }
    for name, library in libraries.items():
        dataset = library.MapDataset.source(array).seed(1).shuffle().batch(BATCH)
        ways[f"{name} by index"] = functools.partial(all_indexed, dataset)
        ways[f"{name} by iteration"] = functools.partial(all_of, dataset.to_iter_dataset())
    report("", measure(ways), "array[permutation]")


def measure(ways: Mapping[str, Measurement]) -> dict[str, list[float]]:
    """Return the seconds of each way in each round, all of them in turn."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, once in ways.items():
            gc.collect()
            found[way].append(once())
    return found


def report(case: str, found: Mapping[str, list[float]], peer: str = "Grain") -> None:
    """Print medians and spreads, and ratios to a peer, each in its round."""
    for way, seconds in found.items():
        text = f"      {case:16}{way:24}{1e6 * statistics.median(seconds):9.2f} us"
        text += f" ({1e6 * min(seconds):.2f} to {1e6 * max(seconds):.2f})"
        if way != peer and peer in found:
            ratios = [own / its for own, its in zip(seconds, found[peer], strict=True)]
            text += f"   {statistics.median(ratios):.2f} x {peer}"
            text += f" ({min(ratios):.2f} to {max(ratios):.2f})"
        print(text)


if __name__ == "__main__":
    main()
