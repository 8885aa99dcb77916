"""torchdata's nodes: a `ParallelMapper` over batches, in worker processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.loaders import nodes_threads

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from benchmarks.loaders import Work

PACKAGES = nodes_threads.PACKAGES


def epoch(work: Work) -> AbstractContextManager[Any]:
    """Open one epoch."""
    return nodes_threads.epoch(work, "process", multiprocessing_context="fork")
