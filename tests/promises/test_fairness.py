"""A consumer for whom batches are always ready lets others have the loop."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from support import until

from aioloader import DataGroup, Loader

BATCHES = 40


def load(item: int, arrays: Any, seed: int | None) -> None:
    """Write an item."""
    arrays["x"][...] = item


async def test_others_have_a_turn_for_each_batch_that_takes_its_time() -> None:
    """Also while all batches are ready, and the consumer itself never waits."""
    group = DataGroup(4, range(4 * BATCHES), loader_arrays={"x": ((), "int32", "int32")})
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with Loader(load, group, depth=BATCHES, num_workers=0, end_at=("epoch", 1)) as loader:
        await until(lambda: loader.statistics().ready == BATCHES)
        beside = asyncio.ensure_future(others())
        await asyncio.sleep(0)
        first, held = turns, []
        async for batch in loader:
            held.append(batch)  # no slot comes back, so that nothing else has a reason to wait
            busy = time.perf_counter()
            while time.perf_counter() - busy < 1e-3:
                pass
        assert turns - first >= BATCHES - 2
        beside.cancel()
