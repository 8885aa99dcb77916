"""Pipelines that several tests of iterators share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aioloader import IterDataset, MapDataset, ReadOptions

if TYPE_CHECKING:
    import numpy as np

LENGTH = 23
OPTIONS = [ReadOptions(0, 0), ReadOptions(1, 1), ReadOptions(2, 3), ReadOptions(4, 50)]


async def plus_one(x: int) -> int:
    await asyncio.sleep(0)
    return x + 1


async def _is_no_seven(x: int) -> bool:
    await asyncio.sleep(0)
    return x % 7 != 0


async def _draw(x: int, rng: np.random.Generator) -> int:
    first = rng.integers(100)
    await asyncio.sleep(0)
    return x + int(first) + int(rng.integers(100))


STAGES: dict[str, Any] = {
    "map": lambda ds: ds.map(lambda x: x + 1),
    "map_with_index": lambda ds: ds.map_with_index(lambda i, x: 100 * i + x),
    "random_map": lambda ds: ds.random_map(lambda x, rng: x + int(rng.integers(100)), seed=3),
    "filter": lambda ds: ds.filter(lambda x: x % 3 != 0),
    "batch": lambda ds: ds.batch(3, batch_fn=sum),
    "mix": lambda ds: IterDataset.mix([ds, MapDataset.range(50, 90).to_iter_dataset()], [2, 1]),
    "async map": lambda ds: ds.map(plus_one),
    "async filter": lambda ds: ds.filter(_is_no_seven),
    "async random_map": lambda ds: ds.random_map(_draw, seed=4),
}


def pipeline(stages: list[str], options: ReadOptions, *, is_async: bool = False) -> Any:
    """Return a dataset of whole numbers."""
    numbers = MapDataset.source(list(range(LENGTH))).seed(1).shuffle()
    numbers = numbers.map(plus_one) if is_async else numbers.map(lambda x: x + 1)
    dataset = numbers.to_iter_dataset(options)
    for stage in stages:
        dataset = STAGES[stage](dataset)
    return dataset
