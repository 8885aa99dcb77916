"""aioloader, with worker processes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aioloader import DataGroup, Loader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.loaders import Row, Work

PACKAGES = ("aioloader", "jax")


def opened(work: Work, **options: Any) -> Loader[Any]:
    """Return the loader, with what is asked for beside the work."""
    layout = {name: (shape, dtype, dtype) for name, (shape, dtype) in work.layout.items()}
    group = DataGroup(
        work.batch_size, work.items, loader_arrays=layout, shuffle_first=work.shuffled
    )
    settings: dict[str, Any] = {
        "num_workers": work.num_workers,
        "depth": work.slots,
        "deterministic": work.ordered,
        "start_at": (0, work.start),
        "end_at": ("batch", work.start + work.batches),
    }
    return Loader(options.pop("load", work.fill), group, **settings, **options)


@asynccontextmanager
async def epoch(work: Work, **options: Any) -> AsyncIterator[AsyncIterator[Row]]:
    """Open one epoch."""
    async with opened(work, **options) as loader:
        yield Batches(loader)


class Batches:
    """The loader's batches, as mappings."""

    def __init__(self, loader: Loader[Any]) -> None:
        self._loader = loader

    def __aiter__(self) -> Batches:
        return self

    async def __anext__(self) -> Row:
        return dict((await anext(self._loader)).arrays)
