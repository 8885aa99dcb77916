"""PyTorch's `DataLoader`, with a map-style dataset and worker processes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers import PATIENCE, Row, Work, stacked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PACKAGES = ("torch",)


class Rows(Dataset[Row]):
    """The rows as a dataset."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def __len__(self) -> int:
        return len(self._work.items)

    def __getitem__(self, index: int) -> Row:
        return self._work.row(self._work.items[index])


def collate(rows: Sequence[Row]) -> Row:
    """Make tensors, which travel in shared memory, and leave the rest as it is."""
    batch: dict[str, Any] = stacked(rows)
    return {
        name: torch.from_numpy(column) if isinstance(column, np.ndarray) else column
        for name, column in batch.items()
    }


@contextmanager
def epoch(work: Work) -> Iterator[Iterator[Row]]:
    """Open one epoch."""
    options: dict[str, Any] = {"num_workers": work.num_workers, "timeout": PATIENCE}
    yield iter(DataLoader(Rows(work), work.batch_size, collate_fn=collate, **options))
