"""From a thousand items to a billion, shuffled: nothing may grow with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.loaders import Work
from benchmarks.workloads import Column, Workload
from benchmarks.workloads.tiny import load

if TYPE_CHECKING:
    from benchmarks.program import Setting

BATCH, BATCHES = 100, 4_000

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
    from benchmarks.consumer import ENDS, Consumer, consume

    adapter = setting.adapter
    figures = consume(adapter.epoch(given), Consumer(given, ENDS))
    figures["setup_ms"], figures["first_ms"] = (
        figures[key] * 1e3 for key in ("setup_s", "first_s")
    )
    return figures | {"row_us": 1e6 / figures["rate"]}


def run(setting: Setting) -> dict[str, Any]:
    """Run as many batches as ever, of so many items."""
    items = range(int(float(setting.case)))
    layout = {"x": ((8,), "int32")}
    limit = setting.times(BATCHES, 24)
    return measure(setting, Work(items, layout, load, BATCH, shuffled=True, limit=limit))
