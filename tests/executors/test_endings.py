"""Endings: how workers that have nothing to do leave, and what counts of those that died."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from executor_bench import ROWS, bench
from support import until

if TYPE_CHECKING:
    from pathlib import Path

ON_LOOPS = ["asyncio"]


async def test_idle_workers_end_by_themselves(tmp_path: Path) -> None:
    """As processes do: what they registered for their end is done."""
    folder = str(tmp_path)

    def startup() -> None:
        from multiprocessing import util

        util.Finalize(None, lambda: open(f"{folder}/{os.getpid()}", "x").close(), exitpriority=1)

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, int]:
        return {"pid": os.getpid()}

    async with bench(load, startup=startup) as b:
        await b.fill(range(ROWS))
        await until(lambda: len(b.executor.worker_pids) == 2)
        pids = set(b.executor.worker_pids)
        seen: set[Any] = set()
        while seen != pids:  # both of them are up
            seen |= set((await b.fill(range(ROWS))).extras["pid"])
    assert {int(path.name) for path in tmp_path.iterdir()} == pids


async def test_what_was_answered_before_a_death_is_not_run_again(tmp_path: Path) -> None:
    """Though the loop had no time to hear of it."""
    folder = str(tmp_path)

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, int]:
        with open(f"{folder}/{item}", "a") as file:
            file.write("x")
        if item == 8 and os.path.getsize(f"{folder}/{item}") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        arrays["x"][...] = item
        return {"item": item}

    async with bench(load, num_workers=1) as b:
        await b.fill([100])
        fills = [asyncio.ensure_future(b.fill(range(n, n + ROWS))) for n in (0, 8)]
        while not fills[1].done() and b.arena.on_loan < 2:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        pid, end = b.executor.worker_pids[0], time.monotonic() + 10
        while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
            time.sleep(0.05)  # the program computes, and the loop stands still
        results = await asyncio.gather(*fills)
    assert [x for result in results for x in result.x] == list(range(2 * ROWS))
    assert [(tmp_path / str(n)).read_text() for n in range(ROWS)] == ["x"] * ROWS
    assert (tmp_path / "8").read_text() == "xx"
