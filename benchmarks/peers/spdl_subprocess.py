"""SPDL's pipeline with threads for the work, all in a process of its own."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from spdl.pipeline import PipelineBuilder, run_pipeline_in_subprocess

from benchmarks.peers import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.peers import Row, Work

PACKAGES = ("spdl_core",)


@contextmanager
def epoch(work: Work) -> Iterator[Iterator[Row]]:
    """Open one epoch, by way of `iterate_in_subprocess`. A failure ends it."""
    pipeline = (
        PipelineBuilder()
        .add_source(work.item_batches())
        .pipe(work.rows, concurrency=work.num_workers, output_order="input")
        .add_sink(work.depth)
        .get_config()
    )
    yield iter(
        run_pipeline_in_subprocess(
            pipeline,
            num_threads=work.num_workers,
            max_failures=0,
            buffer_size=work.depth,
            mp_context="forkserver",
            timeout=PATIENCE,
        )
    )
