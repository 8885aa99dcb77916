"""Grain's reading threads, in the program."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grain
from absl import flags

from benchmarks.loaders import Cuts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.loaders import Row, Work

PACKAGES = ("grain",)


def batches(work: Work, threads: int, ahead: int) -> Any:
    """Return a dataset whose elements are batches, which saves it a call for each item."""
    flags.FLAGS.mark_as_parsed()  # which `absl.app.run` would do
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    cuts = Cuts(work.items, work.batch_size)
    return grain.MapDataset.source(cuts).map(work.batch).to_iter_dataset(options)


@contextmanager
def epoch(work: Work) -> Iterator[Iterator[Row]]:
    """Open one epoch."""
    iterator = iter(batches(work, work.num_workers, work.depth))
    if work.start:
        iterator.set_state({"next_index": work.start})
    try:
        yield itertools.islice(iterator, work.batches)
    finally:
        iterator.close()
