"""Prefetching: 10 ms to produce an element, 10 ms to use it, against doing both at once."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Any

from aioloader import prefetching_map, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

SECONDS = 0.01
ELEMENTS = 50
ROUNDS = 3
SIZES = (0, 1, 2)


def produce() -> Iterator[int]:
    for number in range(ELEMENTS):
        time.sleep(SECONDS)
        yield number


async def produce_async() -> AsyncIterator[int]:
    for number in range(ELEMENTS):
        await asyncio.sleep(SECONDS)
        yield number


def ideal() -> None:
    """Produce the first element; from then on both go on at once."""
    for _ in range(ELEMENTS + 1):
        time.sleep(SECONDS)


async def ideal_async() -> None:
    for _ in range(ELEMENTS + 1):
        await asyncio.sleep(SECONDS)


def use(inputs: Any) -> None:
    for _ in inputs:
        time.sleep(SECONDS)


async def use_async(inputs: Any) -> None:
    async for _ in inputs:
        await asyncio.sleep(SECONDS)


async def use_blocking(inputs: Any) -> None:
    async for _ in inputs:
        time.sleep(SECONDS)  # noqa: ASYNC251


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "for, sync inputs": (produce, use),
    "for, async inputs": (produce_async, use),
    "async for, sync inputs": (produce, use_async),
    "async for, async inputs": (produce_async, use_async),
    "async for, async inputs, a body that blocks": (produce_async, use_blocking),
}


def seconds_of(work: Callable[..., Any], *args: Any) -> float:
    started = time.perf_counter()
    coroutine = work(*args)
    if coroutine is not None:
        run(coroutine)
    return time.perf_counter() - started


def main() -> None:
    for name, (inputs, consume) in CASES.items():
        bound = ideal if consume is use else ideal_async
        ratios: dict[int, list[float]] = {size: [] for size in SIZES}
        for _ in range(ROUNDS):
            limit = seconds_of(bound)
            for size, seen in ratios.items():
                mapped = prefetching_map(inputs(), buffer_size=size)
                seen.append(limit / seconds_of(consume, mapped))
        told = ", ".join(
            f"{size}: {statistics.median(seen):.2f} ({min(seen):.2f} to {max(seen):.2f})"
            for size, seen in ratios.items()
        )
        print(f"{name}: share of the ideal by buffer_size {told}")


if __name__ == "__main__":
    main()
