"""The memory of a worker process, as its share of what processes have together (PSS)."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from benchmarks.loaders import LOADERS, Work
from benchmarks.workloads import Column, Workload

if TYPE_CHECKING:
    from benchmarks.loaders import Row
    from benchmarks.program import Setting

BATCH, BATCHES = 64, 200
_THREADS = ("ours_vectorized", "ours_threads", "grain_threads", "nodes_threads", "spdl_threads")

WORKLOAD = Workload(
    title="memory of a worker process",
    columns={"worker_mib": Column("PSS, MiB", "{:.1f}", ratio="above")},
    limit="child",
    loaders=("child", *(name for name in LOADERS if name not in _THREADS)),
    short=("child", "ours", "hydrax", "torch"),
    reach="≤ 10 MiB above a bare child with numpy",
)


def load(item: int, arrays: Row, seed: int | None) -> None:
    time.sleep(0.0001)
    arrays["x"][...] = item
    arrays["pid"][...] = os.getpid()


def run(setting: Setting) -> dict[str, Any]:
    """Run one epoch, and look at the processes that filled its rows before they end."""
    import numpy as np

    from benchmarks.consumer import ENDS, Consumer, consume, pss

    adapter = setting.adapter
    if hasattr(adapter, "start"):
        return dict(adapter.start())

    class Census(Consumer):
        """Also looks at who filled the rows."""

        def take(self, batch: Row) -> None:
            if self.taken == BATCHES // 2:
                pids = set(np.asarray(batch["pid"]).ravel().tolist()) - {os.getpid()}
                self.figures["worker_mib"] = max(map(pss, pids)) / 1024
            super().take(batch)

    items = range(BATCH * BATCHES)
    given = Work(items, {"x": ((8,), "int32"), "pid": ((1,), "int32")}, load, BATCH)
    consumer = Census(given, ENDS)
    consumer.compared = ("x",)
    return consume(adapter.epoch(given), consumer)
