"""SPDL's pipeline with threads in a process of its own; batches come through its shared arena."""

from __future__ import annotations

import multiprocessing
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spdl.pipeline import SharedMemorySegmentPool, run_pipeline_in_subprocess

from benchmarks.loaders import PATIENCE, context_name
from benchmarks.loaders.spdl_threads import PACKAGES, stages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.loaders import Row, Work

__all__ = ["PACKAGES", "epoch"]

_WORTH_SHARING_BYTES = 1 << 18


@contextmanager
def epoch(work: Work) -> Iterator[Iterator[Row]]:
    """Open one epoch."""
    arena = None
    if work.batch_bytes >= _WORTH_SHARING_BYTES:
        multiprocessing.set_start_method(context_name(), force=True)  # which the arena's lock has
        arena = SharedMemorySegmentPool(work.batch_bytes + (1 << 16), work.depth + 2)
    yield iter(
        run_pipeline_in_subprocess(
            stages(work).get_config(),
            num_threads=work.num_workers,
            max_failures=0,
            buffer_size=work.depth,
            mp_context=context_name(),
            timeout=PATIENCE,
            arena=arena,
        )
    )
