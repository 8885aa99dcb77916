"""Keep rows in RAM: the first epoch loads them, with some help, the second finds them all there.

python examples/ram_cache.py [FOLDER FOR TENSORBOARD]
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import Any

import numpy as np

from aioloader import DataCache, run

CONFIG = {"data_set": {"use_cache": True, "preload_cache": True}}


class Remote:
    """Rows that are far away: a few milliseconds each, many at once."""

    def __len__(self) -> int:
        return 400

    async def resolve_data(self, index: int) -> dict[str, Any]:
        await asyncio.sleep(0.005)
        return {"image": np.full((32, 32, 3), index % 256, np.uint8), "label": index}


async def main(folder: str | None) -> None:
    with contextlib.ExitStack() as owned:
        sink = None
        if folder is not None:
            from aioloader.metrics.tensorboard import TensorBoardSink

            sink = owned.enter_context(TensorBoardSink(folder))
        options = {"max_bytes": 64 << 20, "metrics": sink, "logging_interval": 100}
        async with DataCache(CONFIG, Remote(), **options) as cache:
            for epoch in range(2):
                before, started = cache.statistics(), time.perf_counter()
                for index in range(len(cache)):
                    row = await cache.get_or_load(index)
                    assert row["label"] == index
                seconds, now = time.perf_counter() - started, cache.statistics()
                hits = now.hits - before.hits
                print(f"epoch {epoch}: {hits / len(cache):.0%} hits, {seconds:.3f} s")
            print(f"items={now.items} bytes={now.bytes} hits={hits}")


if __name__ == "__main__":
    run(main(*sys.argv[1:2] or [None]))
