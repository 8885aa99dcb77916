"""The first batch, and the memory of a worker, against bare pools of the same context."""

from __future__ import annotations

import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax  # at the top, as in any training script: workers must not have it

from aioloader import DataGroup, Loader, run
from aioloader._executors.forkserver import ForkContext, server

ROUNDS = 7


def load(item: int, arrays: Any, seed: int | None) -> dict[str, object] | None:
    arrays["x"][...] = item
    return {"jax": "jax" in sys.modules} if item == 0 else None


def pss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise ValueError(f"no Pss of {pid}")


def bare_child() -> tuple[float, int]:
    """Start a pool of one bare child with numpy; returns the seconds to its result, its PSS."""
    context = ForkContext()
    started = time.perf_counter()
    with server.use(), ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(abs, -1).result()
        seconds = time.perf_counter() - started
        assert context.process is not None
        assert context.process.pid is not None
        return seconds, pss_kib(context.process.pid)


async def loader(num_workers: int) -> tuple[float, int, bool]:
    group = DataGroup(8, range(10**6), loader_arrays={"x": ((16,), "int32", "int32")})
    started = time.perf_counter()
    async with Loader(load, group, num_workers=num_workers, depth=4) as loader:
        batch = await anext(loader)
        seconds = time.perf_counter() - started
        has_jax = bool(batch.additional["jax"][0])
        for _ in range(200):
            batch = await anext(loader)
        pids = loader._executor.worker_pids
        return seconds, max(map(pss_kib, pids)), has_jax


def main() -> None:
    jax.block_until_ready(jax.numpy.zeros(1))
    bare, ours = [], []
    for _ in range(ROUNDS):
        bare.append(bare_child())
        ours.append(run(loader(1)))
    first = statistics.median(seconds for seconds, _ in bare)
    batch = statistics.median(seconds for seconds, _, _ in ours)
    print(f"bare pool, first result: {first * 1e3:.0f} ms; first batch: {batch * 1e3:.0f} ms; ")
    print(f"ratio {batch / first:.2f} (median of {ROUNDS} rounds)")
    child = statistics.median(pss for _, pss in bare) / 1024
    worker = statistics.median(pss for _, pss, _ in ours) / 1024
    print(f"PSS of a bare child with numpy: {child:.1f} MiB; of a worker: {worker:.1f} MiB")
    print(f"above it: {worker - child:.1f} MiB; jax in workers: {any(j for *_, j in ours)}")


if __name__ == "__main__":
    main()
