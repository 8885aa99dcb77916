"""aioloader, with worker processes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aioloader import DataGroup, Loader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.peers import Row, Work

PACKAGES = ("aioloader", "jax")


@asynccontextmanager
async def epoch(work: Work) -> AsyncIterator[AsyncIterator[Row]]:
    """Open one epoch."""
    layout = {name: (shape, dtype, dtype) for name, (shape, dtype) in work.layout.items()}
    group = DataGroup(work.batch_size, work.items, loader_arrays=layout)
    options: dict[str, Any] = {"num_workers": work.num_workers, "depth": work.depth}
    async with Loader(work.fill, group, end_at=("epoch", 1), **options) as loader:
        yield Batches(loader)


class Batches:
    """The loader's batches, as mappings."""

    def __init__(self, loader: Loader[Any]) -> None:
        self._loader = loader

    def __aiter__(self) -> Batches:
        return self

    async def __anext__(self) -> Row:
        batch = await anext(self._loader)
        return {**batch.arrays, **batch.additional}
