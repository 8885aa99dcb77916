"""One item in a hundred takes 50 times as long: who waits for it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.loaders import LOADERS, Work
from benchmarks.workloads import THROUGHPUT, Workload

if TYPE_CHECKING:
    from benchmarks.loaders import Row
    from benchmarks.program import Setting

BATCH, BATCHES = 16, 500
SECONDS, SLOW, TIMES, EVERY = 0.0004, 7, 50, 100
_MIX = 2_654_435_761  # scatters the slow ones

WORKLOAD = Workload(
    title="uneven: 1 % of items take 50 times as long, in order",
    columns=THROUGHPUT,
    limit="bare",
    loaders=("bare", *(name for name in LOADERS if name != "ours_vectorized")),
    short=("bare", "ours", "grain_threads", "torch", "nodes_threads"),
    short_scale=0.4,
)


def load(item: int, arrays: Row, seed: int | None) -> None:
    slow = item * _MIX % (1 << 32) % EVERY == SLOW
    time.sleep(SECONDS * TIMES if slow else SECONDS)
    arrays["x"][...] = item


def run(setting: Setting, *, ordered: bool = True) -> dict[str, Any]:
    """Run one epoch."""
    items = range(setting.times(BATCHES, 16) * BATCH)
    given = replace(Work(items, {"x": ((16,), "int32")}, load, BATCH), ordered=ordered)
    adapter = setting.adapter
    if hasattr(adapter, "measure"):
        return dict(adapter.measure(given))
    from benchmarks.consumer import ENDS, Consumer, consume

    return consume(adapter.epoch(given), Consumer(given, ENDS))
