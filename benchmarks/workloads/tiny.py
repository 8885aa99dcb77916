"""Items of 32 bytes and a trivial function: what a loader itself costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.loaders import LOADERS, SHORT_PEERS, Work
from benchmarks.workloads import THROUGHPUT, Workload

if TYPE_CHECKING:
    from benchmarks.loaders import Row
    from benchmarks.program import Setting

BATCH, BATCHES = 256, 784  # 200,000 items
_EPOCHS = {"hydrax": 1, "pair": 10, "ours": 10, "ours_vectorized": 20}
_USUAL_EPOCHS = 4  # so that what takes no time is measured for long enough

WORKLOAD = Workload(
    title="tiny: 200,000 items of 32 bytes, batches of 256",
    columns=THROUGHPUT,
    limit="pair",
    loaders=("pair", *LOADERS),
    short=("pair", "ours", "ours_vectorized", *SHORT_PEERS, "asyncio_pool"),
    reach="plain ≥ 0.9 of the bare pair at ≤ 1.5 x its CPU, `vectorized` ≥ 5 x the pair",
)


def load(item: int, arrays: Row, seed: int | None) -> None:
    arrays["x"][...] = item


def load_many(items: Any, arrays: Row, seeds: Any) -> None:
    arrays["x"][...] = np.asarray(items, np.int32)[:, None]


def work(setting: Setting, epochs: int = 1) -> Work:
    """Return the work; those who are done in no time get more of it."""
    items = range(setting.times(BATCHES, 24) * epochs * BATCH)
    return Work(items, {"x": ((8,), "int32")}, load, BATCH, fill_many=load_many)


def run(setting: Setting) -> dict[str, Any]:
    """Run one epoch."""
    from benchmarks.consumer import ENDS, Consumer, consume

    given = work(setting, _EPOCHS.get(setting.loader, _USUAL_EPOCHS) if setting.scale > 0.2 else 1)
    adapter = setting.adapter
    consumer = Consumer(given, ENDS)
    return consume(adapter.epoch(given), consumer)
