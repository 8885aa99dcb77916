"""Grain's `mp_prefetch`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import grain
from absl import flags
from grain.multiprocessing import MultiprocessingOptions

from benchmarks.peers import Row, Work, stacked

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGES = ("grain",)


@contextmanager
def epoch(work: Work) -> Iterator[Iterator[Row]]:
    """Open one epoch."""
    flags.FLAGS.mark_as_parsed()  # which `absl.app.run` would do
    rows = grain.MapDataset.source(work.items).map(work.row)
    batches = rows.batch(work.batch_size, batch_fn=stacked).to_iter_dataset()
    options = MultiprocessingOptions(work.num_workers, per_worker_buffer_size=work.depth)
    iterator = iter(batches.mp_prefetch(options))
    try:
        yield iterator
    finally:
        iterator.close()
