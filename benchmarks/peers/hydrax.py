"""hydrax's `Dataloader`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from hydrax import DataGroup, Dataloader

from benchmarks.peers import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.peers import Row, Work

PACKAGES = ("hydrax", "jax")


class Fill:
    """The fill function, which here has to return a mapping."""

    def __init__(self, work: Work) -> None:
        self._fill = work.fill

    def __call__(self, item: object, arrays: Row, seed: int | None) -> Row:
        return dict(self._fill(item, arrays, seed) or {})


@contextmanager
def epoch(work: Work) -> Iterator[Iterator[Row]]:
    """Open one epoch."""
    layout = {name: (shape, dtype, dtype) for name, (shape, dtype) in work.layout.items()}
    group = DataGroup(work.batch_size, work.items, loader_arrays=layout)
    with Dataloader(
        Fill(work),
        group,
        depth=work.depth,
        loader_count=work.num_workers,
        end_at=("epoch", 1),
        timeout_sec=PATIENCE,
    ) as loader:
        yield Batches(loader)


class Batches:
    """The loader's batches, as mappings. None is held, which would keep its memory."""

    def __init__(self, loader: Dataloader[object]) -> None:
        self._loader = loader

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Row:
        batch = next(self._loader)
        return {**batch.arrays, **batch.additional}
