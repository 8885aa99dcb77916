"""The first batch at 1 %, 50 % and 99 % of an epoch: what comes before it must cost nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.workloads import Column, Workload, tiny

if TYPE_CHECKING:
    from benchmarks.program import Setting

BATCH, BATCHES = 256, 16

WORKLOAD = Workload(
    title="resume: the first batch at a share of an epoch",
    columns={"first_ms": Column("ms")},
    loaders=("ours", "ours_threads", "hydrax", "grain_threads"),
    short=("ours",),
    cases=tuple(f"{n} {share}" for n in ("1e6", "1e8") for share in ("1%", "50%", "99%")),
    short_cases=("1e6 50%", "1e8 1%", "1e8 99%"),
    reach="equal times",
)


def run(setting: Setting) -> dict[str, Any]:
    """Start somewhere, and take a few batches."""
    from benchmarks.consumer import ENDS, Consumer, consume

    count, share = setting.case.split()
    batches = int(float(count)) // BATCH
    start = batches * int(share.removesuffix("%")) // 100
    given = replace(tiny.work(setting), items=range(batches * BATCH), start=start, limit=BATCHES)
    adapter = setting.adapter
    figures = consume(adapter.epoch(given), Consumer(given, ENDS))
    return figures | {"first_ms": figures["first_s"] * 1e3}
