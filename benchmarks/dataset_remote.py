"""Datasets of remote objects: fetched by coroutines, decoded elsewhere, and made into batches."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import statistics
import time
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

import aioloader
from aioloader import MapDataset, MultiprocessingOptions, ReadOptions
from benchmarks.web import LATENCY, OBJECTS, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Fetch = Callable[[int], Awaitable[bytes]]

ROUNDS = 5
AT_ONCE = 32
COUNT = 3072
BATCH = 64
WORKERS = 2


def decode(payload: bytes) -> np.ndarray:
    """Return an object as an array."""
    return np.frombuffer(zlib.decompress(payload), np.uint8).reshape(128, 128, 3)


class Remote:
    """The objects as a source: its elements are awaited."""

    def __init__(self, fetch: Fetch) -> None:
        self.fetch = fetch

    def __len__(self) -> int:
        return COUNT

    async def __getitem__(self, index: int) -> bytes:
        return await self.fetch(index)


def mapped(fetch: Fetch) -> MapDataset[Any]:
    return MapDataset.range(COUNT).map(fetch).map(decode)


def from_source(fetch: Fetch) -> MapDataset[Any]:
    return MapDataset.source(Remote(fetch)).map(decode)


async def in_threads(dataset: MapDataset[Any]) -> Clock:
    return await draw(dataset.to_iter_dataset(ReadOptions(num_threads=AT_ONCE)).batch(BATCH))


async def in_workers(dataset: MapDataset[Any]) -> Clock:
    elements = dataset.to_iter_dataset(ReadOptions(num_threads=AT_ONCE))
    options = MultiprocessingOptions(num_workers=WORKERS, per_worker_buffer_size=AT_ONCE)
    return await draw(elements.mp_prefetch(options).batch(BATCH))


async def draw(dataset: Any) -> Clock:
    """Draw all batches, and check them."""
    clock, count = Clock(), 0
    async with aiter(dataset) as iterator:
        async for batch in iterator:
            expected = np.arange(count, count + len(batch)) % OBJECTS
            assert (batch[:, 0, 0, 0] == expected).all()
            count += len(batch)
            clock.arrived(len(batch))
    assert count == COUNT
    return clock


async def raw(fetch: Fetch) -> Clock:
    """Fetch as many at once, and do nothing else."""
    gate, clock = asyncio.Semaphore(AT_ONCE), Clock()

    async def one(number: int) -> None:
        async with gate:
            await fetch(number)
        clock.arrived(1)

    await asyncio.gather(*map(one, range(COUNT)))
    return clock


class Clock:
    """The rate at which objects arrive after the first quarter: workers have begun by then."""

    def __init__(self) -> None:
        self.count = self.first = 0
        self.since = self.last = self.computed = 0.0

    def arrived(self, number: int) -> None:
        self.count += number
        if not self.first and self.count >= COUNT // 4:
            self.first, self.since = self.count, time.perf_counter()
            self.computed = -time.thread_time()
        if self.count == COUNT:
            self.last = time.perf_counter()
            self.computed += time.thread_time()

    @property
    def rate(self) -> float:
        return (COUNT - self.first) / (self.last - self.since)

    @property
    def loop_seconds(self) -> float:
        """What the loop's thread has computed for each."""
        return self.computed / (COUNT - self.first)


@asynccontextmanager
async def client(address: str) -> AsyncIterator[Fetch]:
    """A real client; the value fetches one object."""
    aiohttp = importlib.import_module("aiohttp")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=AT_ONCE)) as session:

        async def fetch(number: int) -> bytes:
            async with session.get(f"{address}/{number}") as response:
                return await response.read()

        yield fetch


WAYS: dict[str, Callable[[Fetch], Awaitable[Clock]]] = {
    "client alone": raw,
    "map, threads": lambda fetch: in_threads(mapped(fetch)),
    "map, workers": lambda fetch: in_workers(mapped(fetch)),
    "source, threads": lambda fetch: in_threads(from_source(fetch)),
    "source, workers": lambda fetch: in_workers(from_source(fetch)),
}


async def once(address: str, way: str) -> Clock:
    async with client(address) as fetch:
        return await WAYS[way](fetch)


def main() -> None:
    if importlib.util.find_spec("aiohttp") is None:
        print("   aiohttp is not installed; `pip install aiohttp` does that")
        return
    print(f"   from a server with {1000 * LATENCY:.0f} ms latency, {AT_ONCE} at once:")
    found: dict[str, list[Clock]] = {way: [] for way in WAYS}
    with serving() as address:
        for _ in range(ROUNDS):
            for way, clocks in found.items():
                clocks.append(aioloader.run(once(address, way)))
    report(found)


def report(found: dict[str, list[Clock]]) -> None:
    """Print rates, and ratios to the client alone, each in its round."""
    alone = next(iter(found.values()))
    for way, clocks in found.items():
        ratios = [clock.rate / its.rate for clock, its in zip(clocks, alone, strict=True)]
        print(
            f"      {way:16}{statistics.median(c.rate for c in clocks):8,.0f} objects/s   "
            f"{1e6 * statistics.median(c.loop_seconds for c in clocks):6.0f} us on the loop   "
            f"{statistics.median(ratios):.3f} x alone ({min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
