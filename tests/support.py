"""Helpers that several tests share."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import uvloop

from aioloader import Batch, DataGroup, Loader
from benchmarks import processes

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

both_loops = pytest.mark.parametrize("loop", list(LOOPS))


def run_on(loop: str, main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end on a new loop of the named kind."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(main)


ARRAYS = {"x": ((4,), "int64", "int32"), "y": ((), "float32", "float32")}


def simple_group(length: int = 64, batch_size: int = 8, **options: Any) -> DataGroup[int]:
    """Return a group over whole numbers."""
    return DataGroup(batch_size, range(length), loader_arrays=ARRAYS, **options)


def simple_load(item: int, arrays: Any, seed: int | None) -> dict[str, object] | None:
    """Fill a row that tells which item and seed it is of."""
    arrays["x"][...] = (item, (seed or 0) % 1000, item * item % 1000, -item)
    arrays["y"][...] = item / 4
    return {"third": item} if item % 3 == 0 else None


async def simple_coroutine_load(item: int, arrays: Any, seed: int | None) -> Any:
    """Do the same after a turn of the loop."""
    await asyncio.sleep(0)
    return simple_load(item, arrays, seed)


def digest_of(batch: Batch[Any]) -> str:
    """Return a digest of everything that a batch brings."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(batch.arrays):
        digest.update(name.encode())
        digest.update(np.asarray(batch.arrays[name]).tobytes())
    digest.update(repr((batch.group_index, batch.indices, dict(batch.additional))).encode())
    return f"{'V' if batch.is_validation else 'T'}{digest.hexdigest()}"


async def digests(loader: Loader[Any], limit: int | None = None) -> list[str]:
    """Run a loader, to its end or for ``limit`` batches, and return each batch's digest."""
    seen: list[str] = []
    async with loader:
        if limit == 0:
            return seen
        async for batch in loader:
            seen.append(digest_of(batch))
            del batch  # with a depth of one it would hold the only slot
            if len(seen) == limit:
                break
    return seen


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait for a condition, with a time limit."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{condition} did not come true in {seconds} s"
        await asyncio.sleep(0.005)


def script(tmp_path: Path, text: str, *args: str, **options: Any) -> subprocess.Popen[str]:
    """Start a Python program, of which ``__main__`` is a file of its own."""
    number = len(list(tmp_path.glob("program_*.py")))
    path = tmp_path / f"program_{number}.py"  # one that is starting may not have read its own yet
    path.write_text(text)
    return subprocess.Popen(
        [sys.executable, str(path), *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        **options,
    )


def descendants(pid: int) -> list[int]:
    """Return the process ids of everything below a process."""
    return processes.below(pid)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
