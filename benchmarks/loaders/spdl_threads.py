"""SPDL's pipeline, in threads of the program."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from spdl.pipeline import PipelineBuilder

from benchmarks.loaders import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.loaders import Row, Work

PACKAGES = ("spdl_core",)


def stages(work: Work) -> PipelineBuilder:
    """Return the stages. A failure ends an epoch, because the default is to log and drop."""
    order = "input" if work.ordered else "completion"
    return (
        PipelineBuilder()
        .add_source(work.cuts)
        .pipe(work.batch, concurrency=work.num_workers, output_order=order, max_failures=0)
        .add_sink(work.depth)
    )


@contextmanager
def epoch(work: Work) -> Iterator[Iterator[Row]]:
    """Open one epoch."""
    pipeline = stages(work).build(num_threads=work.num_workers, max_failures=0)
    with pipeline.auto_stop():
        yield pipeline.get_iterator(timeout=PATIENCE)
