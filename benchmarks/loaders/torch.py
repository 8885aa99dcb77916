"""PyTorch's `DataLoader`, with worker processes and a dataset of batches."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.loaders import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.loaders import Row, Work

PACKAGES = ("torch",)


class Batches(Dataset[Any]):
    """Batches as a dataset, as tensors, which travel in shared memory."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._cuts = work.cuts

    def __len__(self) -> int:
        return len(self._cuts)

    def __getitem__(self, index: int) -> Row:
        batch = self._work.batch(self._cuts[index])
        return {name: torch.from_numpy(array) for name, array in batch.items()}


@contextmanager
def epoch(work: Work) -> Iterator[Iterator[Row]]:
    """Open one epoch. Without the iterator its workers end."""
    torch.set_num_threads(1)
    iterator = iter(
        DataLoader(
            Batches(work),
            batch_size=None,
            num_workers=work.num_workers,
            prefetch_factor=max(1, work.depth // work.num_workers),
            in_order=work.ordered,
            timeout=PATIENCE,
        )
    )
    holder = [iterator]
    del iterator
    yield arrays(holder)


def arrays(holder: list[Any]) -> Iterator[Row]:
    """Yield batches as NumPy arrays over the tensors' memory."""
    for batch in holder.pop():
        yield {name: tensor.numpy() for name, tensor in batch.items()}
        del batch
