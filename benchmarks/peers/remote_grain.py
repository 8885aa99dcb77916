"""Grain's reading threads: one connection in each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grain
from absl import flags

from benchmarks.peers.remote_task import fetch_blocking, stacked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.peers.remote_task import Digest, Task


def epochs(task: Task, digest: Digest) -> Iterator[Iterator[Any]]:
    """Yield epochs."""
    flags.FLAGS.mark_as_parsed()  # which `absl.app.run` would do
    ahead = max(task.workers, task.batch_size * 2)
    options = grain.ReadOptions(num_threads=task.workers, prefetch_buffer_size=ahead)
    objects = grain.MapDataset.range(task.count).map(lambda number: fetch_blocking(task, number))
    batches = objects.to_iter_dataset(options).batch(task.batch_size, batch_fn=stacked)
    while True:
        yield iter(batches)
