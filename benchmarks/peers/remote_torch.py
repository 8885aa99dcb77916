"""PyTorch's `DataLoader`: one connection in each of its workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.remote_task import fetch_blocking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.peers.remote_task import Digest, Task


class Objects(Dataset[Any]):
    """The objects as a dataset."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __len__(self) -> int:
        return self._task.count

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(fetch_blocking(self._task, index).copy())


def epochs(task: Task, digest: Digest) -> Iterator[Iterator[Any]]:
    """Yield epochs."""
    options: dict[str, Any] = {"num_workers": task.workers, "persistent_workers": True}
    loader = DataLoader(Objects(task), task.batch_size, prefetch_factor=2, **options)
    while True:
        yield (batch.numpy() for batch in loader)
