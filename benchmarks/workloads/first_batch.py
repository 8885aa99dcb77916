"""The time from making a loader to its first batch, when all is imported."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.loaders import LOADERS
from benchmarks.workloads import Column, Workload, tiny

if TYPE_CHECKING:
    from benchmarks.program import Setting

BATCHES = 24

WORKLOAD = Workload(
    title="first batch of 256 items of 32 bytes",
    columns={"first_ms": Column("ms", ratio="less")},
    limit="child",
    loaders=("child", *(name for name in LOADERS if name != "ours_vectorized")),
    short=("child", "ours", "ours_threads", "hydrax", "torch", "nodes_threads"),
    reach="≤ 200 ms",
)


def run(setting: Setting) -> dict[str, Any]:
    """Run a few batches."""
    from benchmarks.consumer import ENDS, Consumer, consume

    adapter = setting.adapter
    if hasattr(adapter, "start"):
        return dict(adapter.start())
    given = replace(tiny.work(setting), limit=BATCHES)
    given = replace(given, items=range(BATCHES * given.batch_size))
    figures = consume(adapter.epoch(given), Consumer(given, ENDS))
    return figures | {"first_ms": figures["first_s"] * 1e3}
