"""Workers: the elements of an `IterDataset`, made by processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioloader._datasets.iter_stages import Stage
    from aioloader._datasets.options import MultiprocessingOptions

__all__ = ["prefetch_in_workers"]


def prefetch_in_workers(
    dataset: Any,
    options: MultiprocessingOptions,
    worker_init_fn: Callable[[int, int], None] | None,
) -> Stage:
    """Return the stage after ``dataset`` that makes its elements in worker processes.

    A stage is a value whose ``begin((dataset,))`` returns a new `DatasetIterator`.
    """
    raise NotImplementedError("worker processes for datasets are still to come")
