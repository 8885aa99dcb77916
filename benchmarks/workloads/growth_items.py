"""From a thousand items to a billion, shuffled: nothing may grow with them.

To enter a loader once takes between two thirds of its median and twice that, and a slope over a
few such times says nothing. So each run enters and leaves more loaders, and has their median.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from benchmarks.loaders import Work
from benchmarks.workloads import Column, Workload
from benchmarks.workloads.tiny import load

if TYPE_CHECKING:
    from benchmarks.program import Setting

BATCH, BATCHES = 100, 4_000
ENTRIES = 21

COLUMNS = {
    "setup_ms": Column("set-up, ms", "{:.1f}"),
    "first_ms": Column("first batch, ms"),
    "row_us": Column("µs a row", "{:.2f}"),
    "cpu_us": Column("CPU µs a row", "{:.2f}"),
    "pss_mib": Column("PSS of all, MiB"),
}
WORKLOAD = Workload(
    title="growth with the number of items, shuffled",
    columns=COLUMNS,
    loaders=("ours",),
    short=("ours",),
    cases=("1e3", "1e5", "1e7", "1e9"),
    slopes=tuple(COLUMNS),
    reach="slopes ≤ 0.02 on log-log axes",
)


def measure(setting: Setting, given: Work) -> dict[str, Any]:
    """Run the work, and return what might grow."""
    from benchmarks.consumer import ENDS, Consumer, consume, run

    adapter = setting.adapter
    figures = consume(adapter.epoch(given), Consumer(given, ENDS))
    entries = [run(entering(adapter, given)) for _ in range(setting.times(ENTRIES, 3))]
    return figures | {
        "setup_ms": statistics.median(entries) * 1e3,
        "first_ms": figures["first_s"] * 1e3,
        "row_us": 1e6 / figures["rate"],
    }


async def entering(adapter: Any, given: Work) -> float:
    """Return the seconds that it takes to make and enter a loader."""
    started = time.perf_counter()
    async with adapter.epoch(given):
        return time.perf_counter() - started


def run(setting: Setting) -> dict[str, Any]:
    """Run as many batches as ever, of so many items."""
    items = range(int(float(setting.case)))
    layout = {"x": ((8,), "int32")}
    limit = setting.times(BATCHES, 24)
    return measure(setting, Work(items, layout, load, BATCH, shuffled=True, limit=limit))
