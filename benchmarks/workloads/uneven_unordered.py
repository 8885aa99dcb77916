"""The same as `uneven`, as batches become ready, for loaders that can."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.workloads import uneven

if TYPE_CHECKING:
    from benchmarks.program import Setting

CAN = (
    "ours",
    "ours_threads",
    "hydrax",
    "torch",
    "nodes_threads",
    "nodes_processes",
    "spdl_threads",
)
CAN += ("spdl_subprocess", "asyncio_pool")

WORKLOAD = replace(
    uneven.WORKLOAD,
    title="uneven: 1 % of items take 50 times as long, as they become ready",
    loaders=("bare", *CAN),
    short=("bare", "ours", "torch", "nodes_threads"),
    reach="≥ 0.9 of what two workers can do of which none waits",
)


def run(setting: Setting) -> dict[str, Any]:
    """Run one epoch."""
    return uneven.run(setting, ordered=False)
