"""Soak: hours of loaders in one process, and what grows meanwhile: nothing should."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
from support import descendants

from aioloader import DataGroup, Loader, run
from chaos import consuming
from chaos.consuming import ARRAYS, fetch, load, load_on_loop

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS: tuple[dict[str, Any], ...] = (
    {"num_workers": 2},
    {"num_workers": 2, "kill": True},
    {"num_workers": 1, "fetch": fetch},
    {"num_workers": 0},
    {"load": load_on_loop},
    {"num_workers": 1, "cached": True},
)
LIMITS = {
    "pss_mib": 8.0,
    "tree_pss_mib": 8.0,
    "descriptors": 0.5,
    "tasks": 0.5,
    "threads": 0.5,
    "shared_maps": 0.5,
}
"""The slopes to stay below, each per hour."""


def pss_mib(pids: list[int]) -> float:
    """Return the proportional memory of processes, without the files that they map.

    A library's pages count for less while other programs map it too, and for more once those
    have ended: that is the machine's story, not this program's.
    """
    total, kinds = 0, ("Pss_Anon:", "Pss_Shmem:")
    for pid in pids:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += sum(int(s.split()[1]) for s in text.splitlines() if s.startswith(kinds))
    return total / 1024


async def cycle(options: dict[str, Any], batches: int, folder: str) -> float:
    """Run a loader for some batches; returns the memory of the whole tree in the middle."""
    options = {"load": load, **options}
    function, kill = options.pop("load"), options.pop("kill", False)
    group = DataGroup(32, range(10**7), loader_arrays=ARRAYS, shuffle_later="itemwise")
    if options.pop("cached", False):
        group = DataGroup(32, range(3200), loader_arrays=ARRAYS, cache_location=folder)
    tree = 0.0
    async with Loader(function, group, depth=4, **options) as loader:
        for number in range(batches):
            batch = await anext(loader)
            del batch
            if number == batches // 2:
                tree = pss_mib([os.getpid(), *descendants(os.getpid())])
            if kill and number % 100 == 50:
                for pid in loader._executor.worker_pids[:1]:  # none while others are starting
                    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                        os.kill(pid, signal.SIGKILL)
    return tree


def sample(tree: float) -> dict[str, float]:
    """Count what this process has now, with no loader open."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what is free is no leak
    return {
        "pss_mib": pss_mib([os.getpid()]),
        "tree_pss_mib": tree,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "shared_maps": Path("/proc/self/maps").read_text().count("aioloader-"),
    }


async def soak(seconds: float, batches: int) -> list[tuple[float, dict[str, float]]]:
    """Run loaders of every kind in turn; returns when each round ended, and its counts."""
    start, samples = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() - start < seconds or len(samples) < 4:
            trees = [await cycle(options, batches, folder) for options in KINDS]
            samples.append((time.monotonic() - start, sample(max(trees))))
    return samples


def slopes(samples: list[tuple[float, dict[str, float]]]) -> Iterator[tuple[str, float, float]]:
    """Yield each count's mean and its slope per hour, the first tenth left out."""
    settled = samples[len(samples) // 10 + 1 :]
    hours = np.array([seconds for seconds, _ in settled]) / 3600
    for name in LIMITS:
        values = np.array([counts[name] for _, counts in settled])
        yield name, float(values.mean()), float(np.polyfit(hours, values, 1)[0])


def main(seconds: float, batches: int = 400) -> int:
    """Soak, and print the slopes; returns how many are not about zero."""
    with contextlib.suppress(ValueError):
        cloudpickle.register_pickle_by_value(consuming)
    started = time.monotonic()
    samples = run(soak(seconds, batches))
    minutes = (time.monotonic() - started) / 60
    print(
        f"{minutes:.1f} minutes, {len(samples)} rounds of {len(KINDS)} loaders, {batches} batches"
    )
    wrong = 0
    for name, mean, slope in slopes(samples):
        wrong += slope > LIMITS[name]
        tenths = np.array_split([counts[name] for _, counts in samples], 10)
        course = " ".join(f"{part.mean():.1f}" for part in tenths if len(part))
        print(f"{name:13s} mean {mean:9.2f}, slope {slope:+9.3f} per hour; by tenths: {course}")
    return wrong
