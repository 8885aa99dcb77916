"""Items of 1 MiB into batches of 32 MiB: what is copied on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.loaders import LOADERS, SHORT_PEERS, Work
from benchmarks.workloads import THROUGHPUT, Column, Workload

if TYPE_CHECKING:
    from benchmarks.loaders import Row
    from benchmarks.program import Setting

BATCH, BATCHES, WORDS = 32, 120, 1 << 18
_EPOCHS = {"pair": 5, "ours": 5, "ours_threads": 2, "hydrax": 3, "spdl_threads": 2}

WORKLOAD = Workload(
    title="large: items of 1 MiB, batches of 32",
    columns={"rate": Column("items/s (MiB/s)", ratio="more")}
    | {key: THROUGHPUT[key] for key in ("cpu_us", "pss_mib", "first_s")},
    limit="pair",
    loaders=("pair", *(name for name in LOADERS if name != "ours_vectorized")),
    short=("pair", "ours", *SHORT_PEERS),
    reach="≥ 0.95 of the bare pair at ≤ 1.1 x its CPU",
)


def load(item: int, arrays: Row, seed: int | None) -> None:
    arrays["x"][...] = item


def work(setting: Setting, epochs: int = 1) -> Work:
    """Return the work; those who are done in no time get more of it."""
    items = range(setting.times(BATCHES, 16) * epochs * BATCH)
    return Work(items, {"x": ((WORDS,), "int32")}, load, BATCH)


def run(setting: Setting) -> dict[str, Any]:
    """Run one epoch."""
    from benchmarks.consumer import ENDS, Consumer, consume

    given = work(setting, _EPOCHS.get(setting.loader, 1) if setting.scale > 0.2 else 1)
    adapter = setting.adapter
    consumer = Consumer(given, ENDS)
    return consume(adapter.epoch(given), consumer)
