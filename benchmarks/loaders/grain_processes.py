"""Grain's `mp_prefetch`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from grain.multiprocessing import MultiprocessingOptions

from benchmarks.loaders.grain_threads import PACKAGES, batches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.loaders import Row, Work

__all__ = ["PACKAGES", "epoch"]


@contextmanager
def epoch(work: Work) -> Iterator[Iterator[Row]]:
    """Open one epoch."""
    each = work.depth // work.num_workers
    options = MultiprocessingOptions(work.num_workers, per_worker_buffer_size=each)
    iterator = iter(batches(work, 1, each).mp_prefetch(options))
    try:
        yield iterator
    finally:
        iterator.close()
