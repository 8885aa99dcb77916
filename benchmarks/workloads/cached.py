"""Epochs from a cache on disk, in batches of 32 MiB, against mapping the same files.

Each run is a process of its own that reads one epoch and adds up its words, so that what is
verified at a process's first opening is verified in each. The files are in the page cache, for
each run reads them all first. The limit maps our own files and adds up the same words.
"""

from __future__ import annotations

import importlib.util
import json
import mmap
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.workloads import Column, Workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.program import Setting

BATCHES, ROWS, ROW_BYTES = 128, 32, 1 << 20
WORDS = ROW_BYTES // 4
ARRAYS = {"x": ((WORDS,), "uint32", "uint32")}
BATCH_BYTES = ROWS * ROW_BYTES
PATIENCE = 120  # seconds that hydrax waits for a batch, also while the disk is written to

WORKLOAD = Workload(
    title="cached: 4 GB in batches of 32 MiB",
    columns={
        "rate": Column("GB/s", "{:.1f}", ratio="more"),
        "cpu_ms": Column("CPU ms a batch", "{:.2f}", ratio="cost"),
    },
    limit="mapped",
    loaders=("mapped", "ours_trusting", "ours", "hydrax"),
    short=("mapped", "ours_trusting", "ours", "hydrax"),
    labels={"ours_trusting": "aioloader, `cache_verify=False`"},
    short_scale=0.25,
    reach="≥ 0.5 of mmap with checksums, ≥ 0.9 without",
    prepares=True,
)
PACKAGES = {"mapped": ("numpy",), "ours_trusting": ("aioloader",)}


def load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
    arrays["x"][...] = np.arange(item, item + WORDS, dtype=np.uint32)
    return {}


class Clock:
    """Adds up batches; the clock starts with the second, since starting is another figure."""

    def __init__(self) -> None:
        self.found = self.batches = 0
        self._started = self._ended = (0.0, 0.0)

    def count(self, array: Any) -> None:
        """Add up an array's bytes as 64-bit words, where they are."""
        if self.batches == 1:
            self._started = time.perf_counter(), time.process_time()
        self.found += int(np.asarray(array).reshape(-1).view(np.uint64).sum())
        self.batches += 1
        self._ended = time.perf_counter(), time.process_time()

    @property
    def figures(self) -> dict[str, Any]:
        """What was measured; all that computes is in this process."""
        timed = self.batches - 1
        seconds, computed = (
            end - start for start, end in zip(self._started, self._ended, strict=True)
        )
        return {"rate": timed * BATCH_BYTES / seconds / 1e9, "cpu_ms": computed / timed * 1e3}


def mapped(folder: Path, batches: int, clock: Clock) -> None:
    for path in sorted((folder / "ours").rglob("*.batch")):
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = len(mapping) - BATCH_BYTES
        start -= start % 4096
        clock.count(np.frombuffer(mapping, np.uint64, BATCH_BYTES // 8, start))


def ours(folder: Path, batches: int, clock: Clock, *, verify: bool = True) -> None:
    from aioloader import DataGroup, Loader, run

    async def epoch() -> None:
        group = DataGroup(
            ROWS,
            range(ROWS * batches),
            loader_arrays=ARRAYS,
            cache_location=folder / "ours",
            cache_verify=verify,
        )
        async with Loader(load, group, num_workers=0, end_at=("epoch", 1)) as loader:
            async for batch in loader:
                clock.count(batch.arrays["x"])
                del batch

    run(epoch())


def hydrax(folder: Path, batches: int, clock: Clock) -> None:
    import jax
    from hydrax import DataGroup, Dataloader

    nothing = np.zeros(1)
    group = DataGroup(
        ROWS,
        list(range(ROWS * batches)),
        loader_arrays=ARRAYS,
        cache_location=folder / "hydrax",
        shuffle_later="repeat",
    )
    options: dict[str, Any] = {"depth": 3, "loader_count": 2, "timeout_sec": PATIENCE}
    with Dataloader(load, group, end_at=("epoch", 1), **options) as loader:
        for batch in loader:
            clock.count(batch.arrays["x"])
            del batch
            jax.device_put(nothing)  # JAX lets go of the last batch when it is next called


KINDS: dict[str, Callable[[Path, int, Clock], None]] = {
    "mapped": mapped,
    "ours_trusting": lambda *given: ours(*given, verify=False),
    "ours": ours,
    "hydrax": hydrax,
}


def prepare(setting: Setting) -> None:
    """Fill the caches, each in a process of its own: who finds none fills it."""
    for kind in ("ours", "hydrax"):
        if importlib.util.find_spec("hydrax") is not None or kind == "ours":
            text = json.dumps(asdict(replace(setting, loader=kind)))
            command = (sys.executable, "-m", "benchmarks.program", "cached", text)
            subprocess.run(command, check=kind == "ours", stdout=subprocess.DEVNULL)
            os.sync()  # nobody is to wait for what another has written


def warm(folder: Path) -> None:
    """Have all files in the page cache, also where the system has given some of them up."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass


def expected(items: int) -> int:
    """Return the sum of all items' 64-bit words, each of two words of 32 bits."""
    words = np.arange(WORDS, dtype=np.uint64).reshape(-1, 2).sum(axis=0)
    low, high = (items * int(sum_) + WORDS // 2 * sum(range(items)) for sum_ in words)
    return (low + (high << 32)) % (1 << 64)


def run(setting: Setting) -> dict[str, Any]:
    """Read one epoch, and compare the sum with what it must be."""
    import jax

    jax.devices()  # its start is not what is measured
    warm(Path(setting.scratch) / ("hydrax" if setting.loader == "hydrax" else "ours"))
    batches, clock = setting.times(BATCHES, 4), Clock()
    KINDS[setting.loader](Path(setting.scratch), batches, clock)
    right = clock.batches == batches and clock.found % (1 << 64) == expected(ROWS * batches)
    return clock.figures | {"wrong": "" if right else "not the sum of all words"}
