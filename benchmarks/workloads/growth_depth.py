"""From one batch ahead to 256: nothing but the batches themselves may grow with that."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.workloads import Workload, growth_items, tiny

if TYPE_CHECKING:
    from benchmarks.program import Setting

WORKLOAD = Workload(
    title="growth with depth, tiny items",
    columns=growth_items.COLUMNS,
    loaders=("ours",),
    short=("ours",),
    cases=("1", "4", "16", "64", "256"),
    short_cases=("1", "16", "256"),
    slopes=tuple(growth_items.COLUMNS),
    slopes_from=4,
    reach="slopes ≤ 0.02 on log-log axes (from depth 4: one batch ahead keeps one worker busy)",
)


def run(setting: Setting) -> dict[str, Any]:
    """Run an epoch so many batches ahead; their memory does not count."""
    given = replace(tiny.work(setting, 5), depth=int(setting.case))
    figures = growth_items.measure(setting, given)
    slots = given.slots * (-(-given.batch_bytes // 4096) * 4096)
    return figures | {"pss_mib": figures["pss_mib"] - slots / (1 << 20)}
