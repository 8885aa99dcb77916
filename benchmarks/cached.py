"""Cached epochs: 4 GB from the disk cache, in 32 MiB batches, against mapping the same files.

Each run is a process of its own that reads one epoch and adds up its words, so that what is
verified at a process's first opening is verified in each. The files are in the page cache.
Runs take turns; the limit maps our own files and adds up the same words.
"""

from __future__ import annotations

import json
import mmap
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.faults import bench_python
from benchmarks.peers.enclosure import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS, BATCHES, ROWS, ROW_BYTES = 5, 128, 32, 1 << 20
WORDS = ROW_BYTES // 4
ARRAYS = {"x": ((WORDS,), "uint32", "uint32")}
BATCH_BYTES = ROWS * ROW_BYTES


def load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
    arrays["x"][...] = np.arange(item, item + WORDS, dtype=np.uint32)
    return {}


class Clock:
    """Adds up batches; the clock starts with the second, since starting is another figure."""

    def __init__(self) -> None:
        self.found = self.batches = 0
        self._started = self._ended = 0.0

    def count(self, array: Any) -> None:
        """Add up an array's bytes as 64-bit words, where they are."""
        if self.batches == 1:
            self._started = time.perf_counter()
        self.found += int(np.asarray(array).reshape(-1).view(np.uint64).sum())
        self.batches += 1
        self._ended = time.perf_counter()

    @property
    def seconds(self) -> float:
        """The seconds of an epoch."""
        return (self._ended - self._started) * self.batches / (self.batches - 1)


def limit(folder: Path) -> tuple[float, int]:
    started, found = time.perf_counter(), 0
    for path in sorted((folder / "ours").rglob("*.batch")):
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = len(mapping) - BATCH_BYTES
        start -= start % 4096
        found += int(np.frombuffer(mapping, np.uint64, BATCH_BYTES // 8, start).sum())
    return time.perf_counter() - started, found


def ours(folder: Path, *, verify: bool) -> tuple[float, int]:
    from aioloader import DataGroup, Loader, run

    async def epoch() -> tuple[float, int]:
        group = DataGroup(
            ROWS,
            range(ROWS * BATCHES),
            loader_arrays=ARRAYS,
            cache_location=folder / "ours",
            cache_verify=verify,
        )
        clock = Clock()
        async with Loader(load, group, num_workers=0, end_at=("epoch", 1)) as loader:
            async for batch in loader:
                clock.count(batch.arrays["x"])
                del batch
        return clock.seconds, clock.found

    return run(epoch())


def hydrax(folder: Path) -> tuple[float, int]:
    import jax
    from hydrax import DataGroup, Dataloader

    nothing = np.zeros(1)
    group = DataGroup(
        ROWS,
        list(range(ROWS * BATCHES)),
        loader_arrays=ARRAYS,
        cache_location=folder / "hydrax",
        shuffle_later="repeat",
    )
    clock = Clock()
    with Dataloader(load, group, depth=3, loader_count=2, end_at=("epoch", 1)) as loader:
        for batch in loader:
            clock.count(batch.arrays["x"])
            del batch
            jax.device_put(nothing)  # JAX lets go of the last batch when it is next called
    return clock.seconds, clock.found


KINDS: dict[str, Callable[[Path], tuple[float, int]]] = {
    "limit": limit,
    "trusting": lambda folder: ours(folder, verify=False),
    "verifying": lambda folder: ours(folder, verify=True),
    "hydrax": hydrax,
}


def measured(kind: str, folder: Path) -> tuple[float, int]:
    """Run one epoch in a process of its own."""
    command = (bench_python(), "-m", "benchmarks.cached", kind, str(folder))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind}: {done.stderr}")
    seconds, found = json.loads(done.stdout.splitlines()[-1])
    return seconds, found


def child(kind: str, folder: str) -> None:
    import jax

    jax.devices()  # its start is not what is measured
    print(json.dumps(KINDS[kind](Path(folder))))


def has_hydrax() -> bool:
    return (
        subprocess.run((bench_python(), "-c", "import hydrax"), capture_output=True).returncode == 0
    )


def main() -> None:
    kinds = [kind for kind in KINDS if kind != "hydrax" or has_hydrax()]
    with tempfile.TemporaryDirectory(prefix="aioloader-cached-") as name:
        folder = Path(name)
        for kind in kinds[1:]:
            measured(kind, folder)  # fills the caches
        rounds = [{kind: measured(kind, folder) for kind in kinds} for _ in range(ROUNDS)]
    assert len({found for each in rounds for _, found in each.values()}) == 1
    size = BATCHES * BATCH_BYTES / 1e9
    for kind in kinds:
        seconds = statistics.median(each[kind][0] for each in rounds)
        ratios = sorted(each["limit"][0] / each[kind][0] for each in rounds)
        print(
            f"{kind:10} {size / seconds:5.1f} GB/s, {statistics.median(ratios):.2f} of the limit "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    child(*sys.argv[1:])
