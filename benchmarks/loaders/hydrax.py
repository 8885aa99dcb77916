"""hydrax's `Dataloader`. A program that uses it must be run as ``python -m``."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import jax
import numpy as np
from hydrax import DataGroup, Dataloader

from benchmarks.loaders import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.loaders import Row, Work

PACKAGES = ("hydrax", "jax")


class Fill:
    """The fill function, which here has to return a mapping."""

    def __init__(self, work: Work) -> None:
        self._fill = work.fill

    def __call__(self, item: object, arrays: Row, seed: int | None) -> dict[str, object]:
        self._fill(item, arrays, seed)
        return {}


@contextmanager
def epoch(work: Work) -> Iterator[Iterator[Row]]:
    """Open one epoch."""
    layout = {name: (shape, dtype, dtype) for name, (shape, dtype) in work.layout.items()}
    group = DataGroup(
        work.batch_size, work.items, loader_arrays=layout, shuffle_first=work.shuffled
    )
    with Dataloader(
        Fill(work),
        group,
        depth=work.slots,
        loader_count=work.num_workers,
        deterministic=work.ordered,
        start_at=(0, work.start),
        end_at=("batch", work.start + work.batches),
        timeout_sec=PATIENCE,
    ) as loader:
        yield Batches(loader)


class Batches:
    """The loader's batches, as mappings. None is held, which would keep its memory."""

    def __init__(self, loader: Dataloader[object]) -> None:
        self._loader = loader
        self._nothing = np.zeros(1)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Row:
        jax.device_put(self._nothing)  # JAX lets go of the last batch when it is next called
        return dict(next(self._loader).arrays)
