"""A worker is killed in the middle of an epoch: how long until the next batch, and what is lost.

Other loaders end there, as `benchmarks/FAULTS.md` tells.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

from benchmarks.loaders import Work
from benchmarks.workloads import Column, Workload

if TYPE_CHECKING:
    from benchmarks.loaders import Row
    from benchmarks.program import Setting

BATCH, BATCHES, KILL_AT = 8, 160, 80

WORKLOAD = Workload(
    title="recovery: a worker is killed",
    columns={"gap_ms": Column("longest gap, ms", ratio="less")},
    limit="child",
    loaders=("child", "ours"),
    short=("child", "ours"),
    reach="≤ 500 ms, nothing lost",
)


def load(item: int, arrays: Row, seed: int | None) -> None:
    time.sleep(0.001)
    arrays["x"][...] = item
    arrays["pid"][...] = os.getpid()


def run(setting: Setting) -> dict[str, Any]:
    """Kill who has filled a row, and note the longest time without a batch."""
    import numpy as np

    from benchmarks.consumer import ENDS, Consumer, consume

    adapter = setting.adapter
    if hasattr(adapter, "start"):
        return dict(adapter.start())

    class Killer(Consumer):
        """Kills a worker, and notes gaps."""

        last = 0.0

        def take(self, batch: Row) -> None:
            now = time.perf_counter()
            if self.taken > KILL_AT:
                gap = (now - self.last) * 1e3
                self.figures["gap_ms"] = max(gap, self.figures.get("gap_ms", 0.0))
            pid = int(np.asarray(batch["pid"])[-1, 0])
            super().take(batch)
            if self.taken == KILL_AT + 1 and pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
            self.last = time.perf_counter()

    layout = {"x": ((16,), "int32"), "pid": ((1,), "int32")}
    given = Work(range(BATCH * BATCHES), layout, load, BATCH)
    consumer = Killer(given, ENDS)
    consumer.compared = ("x",)
    return consume(adapter.epoch(given), consumer)
