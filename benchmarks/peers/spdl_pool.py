"""SPDL's pipeline in threads of the program, with a pool of worker processes for the work."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spdl.pipeline import PipelineBuilder

from benchmarks.peers import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.peers import Row, Work

PACKAGES = ("spdl_core",)


@contextmanager
def epoch(work: Work) -> Iterator[Iterator[Row]]:
    """Open one epoch. A failure ends it, because the default is to log and drop."""
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(work.num_workers, mp_context=context) as pool:
        pipeline = (
            PipelineBuilder()
            .add_source(work.item_batches())
            .pipe(work.rows, executor=pool, concurrency=work.num_workers, output_order="input")
            .add_sink(work.depth)
            .build(num_threads=1, max_failures=0)
        )
        with pipeline.auto_stop():
            yield pipeline.get_iterator(timeout=PATIENCE)
