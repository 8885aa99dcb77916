"""How these tests run loaders; nothing here is sent to workers."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aioloader import Batch, Loader

T = TypeVar("T")


async def each(loader: Loader[Any], of: Callable[[Batch[Any]], T]) -> list[T]:
    """Run a loader to its end and return what ``of`` makes of each batch."""
    made: list[T] = []
    async with loader:
        async for batch in loader:
            made.append(of(batch))
            del batch  # with a depth of one it would hold the only slot
    return made


def host(batch: Batch[Any]) -> dict[str, np.ndarray]:
    """Return copies of a batch's arrays."""
    return {name: np.array(array) for name, array in batch.arrays.items()}


def additional(batch: Batch[Any]) -> dict[str, list[Any]]:
    """Return a batch's additional data."""
    return {key: list(column) for key, column in batch.additional.items()}


@contextmanager
def loop_steps() -> Iterator[list[float]]:
    """Record the CPU seconds of each callback that asyncio's loop runs."""
    steps: list[float] = []
    plain = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> Any:
        started = time.thread_time()
        try:
            return plain(handle)
        finally:
            steps.append(time.thread_time() - started)

    asyncio.Handle._run = timed
    try:
        yield steps
    finally:
        asyncio.Handle._run = plain
