"""Costs: what the loop does for one batch, counted and not timed, so that no noise hides a change.

Each figure is of batches 50 to 250 of a loader with two workers, when everything is warm.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pytest
from support import script

from aioloader import DataGroup, Loader
from aioloader._device import placement, putting
from aioloader._executors import wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FIRST, LAST = 50, 250
BATCHES = LAST - FIRST
_PAGE = 4096


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts what costs time: turns, callbacks, futures, tasks, and calls of threads."""

    counts: Counter[str]

    def create_future(self) -> asyncio.Future[Any]:
        self.counts["futures"] += 1
        return super().create_future()

    def create_task(self, coroutine: Any, **options: Any) -> Any:
        self.counts["tasks"] += 1
        return super().create_task(coroutine, **options)

    def run_in_executor(self, *arguments: Any) -> Any:
        self.counts["threads"] += 1
        return super().run_in_executor(*arguments)

    def _run_once(self) -> None:
        self.counts["turns"] += 1
        super()._run_once()  # type: ignore[misc]

    def call_soon(self, *arguments: Any, **options: Any) -> Any:
        self.counts["callbacks"] += 1
        return super().call_soon(*arguments, **options)

    def call_at(self, *arguments: Any, **options: Any) -> Any:
        self.counts["timers"] += 1
        return super().call_at(*arguments, **options)


@dataclass
class Costs:
    """What a batch costs, on average."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: float = 0.0
    cpu_seconds: float = 0.0

    def __getitem__(self, name: str) -> float:
        return self.counts[name] / BATCHES


def _fill(items: Any, arrays: Any, seeds: Any) -> None:
    for array in arrays.values():
        array[...] = len(items)


def _counted(counts: Counter[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        counts[name] += 1
        return function(*arguments, **options)

    return call


def costs(
    patch: pytest.MonkeyPatch,
    batch_size: int = 256,
    arrays: int = 1,
    width: int = 8,
    **options: Any,
) -> Costs:
    """Run a loader, and return what a batch of it costs."""
    found = Costs()
    counts = found.counts
    for holder, name in ((wire, "send"), (wire, "receive"), (jax, "device_put")):
        patch.setattr(holder, name, _counted(counts, name, getattr(holder, name)))
    options.setdefault("num_workers", 2)
    layouts = {f"a{n}": ((width,), "int32", "int32") for n in range(arrays)}

    async def main() -> None:
        group = DataGroup(batch_size, range(10**9), loader_arrays=layouts)
        loader = Loader(_fill, group, vectorized=True, end_at=("batch", LAST), **options)
        async with loader:
            async for batch in loader:
                if batch.batch_num == FIRST:
                    counts.clear()
                    before, started = _faults(), time.thread_time()
                np.asarray(batch.arrays["a0"]).reshape(-1)[:: _PAGE // 4].sum()  # each page
                del batch
            found.cpu_seconds = (time.thread_time() - started) / BATCHES
            found.faults = (_faults() - before) / BATCHES
            found.counts = Counter(counts)

    loop = CountingLoop()
    loop.counts = counts
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
    return found


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.fixture(scope="module")
def small() -> Costs:
    """Batches of 256 small rows: what most of the fixed costs show in."""
    with pytest.MonkeyPatch.context() as patch:
        return costs(patch)


def test_no_task_is_started_for_a_batch(small: Costs) -> None:
    """Those that load batches go on to the next one."""
    assert small["tasks"] <= 0.1


def test_no_thread_is_asked_for_a_batch(small: Costs) -> None:
    """Neither for its tickets, nor its items, its packing, or its placement."""
    assert small["threads"] <= 0.05


def test_a_batch_is_few_messages(small: Costs) -> None:
    """Chunks are as large as their items are small; an answer is read when it is there."""
    assert small["send"] <= 1.5
    assert small["receive"] <= 1.5


def test_a_batch_takes_few_turns_of_the_loop(small: Costs) -> None:
    """Few futures, callbacks and timers, too."""
    assert small["turns"] <= 4
    assert small["futures"] <= 1.7
    assert small["callbacks"] <= 1.7
    assert small["timers"] <= 5


def test_a_batch_is_put_on_the_device_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many arrays it has, also where JAX's inner call is not to be had."""
    monkeypatch.setattr(putting, "_inner", lambda: None)
    assert costs(monkeypatch, arrays=8)["device_put"] == pytest.approx(1.0, abs=0.05)


def test_arrays_of_common_dtypes_take_the_short_way(small: Costs) -> None:
    """Without all that `jax.device_put` does for transformations and shardings."""
    assert small["device_put"] <= 0.05


@pytest.mark.parametrize("depth", [2, 4, 64])
def test_costs_do_not_depend_on_the_depth(monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    found = costs(monkeypatch, depth=depth)
    assert found["tasks"] <= 0.1 + depth / BATCHES
    assert found["send"] <= 2.5
    assert found["callbacks"] <= 1.7 + depth / BATCHES


def test_memory_is_faulted_in_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots are warm from their second use on: 4 MiB would be 64 faults, of 16 pages each."""
    found = costs(monkeypatch, batch_size=64, width=16 * 1024, depth=4)
    assert found.faults <= 16


def test_no_bytes_are_copied_on_the_way_to_the_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch's array lies in the memory that workers wrote: its slots, again and again."""
    addresses: set[int] = set()
    place = placement.Placer.place

    def noting(self: Any, arrays: Any, *arguments: Any) -> Any:
        placed = place(self, arrays, *arguments)
        addresses.add(np.asarray(placed["a0"]).ctypes.data - arrays["a0"].ctypes.data)
        return placed

    monkeypatch.setattr(placement.Placer, "place", noting)
    costs(monkeypatch, batch_size=32, width=4096)
    assert addresses == {0}


def test_the_loops_share_hardly_grows_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 times the rows are a few messages more; in CPU time, the best of three runs."""
    found = {}
    for rows in (256, 65_536):
        runs = []
        for _ in range(3):
            with pytest.MonkeyPatch.context() as patch:
                runs.append(costs(patch, batch_size=rows, width=1))
        found[rows] = min(runs, key=lambda run: run.cpu_seconds)
    assert found[65_536]["send"] <= 16
    assert found[65_536].cpu_seconds <= 8 * found[256].cpu_seconds


_IMPORTS = """
import asyncio, sys, jax
from aioloader import DataGroup, Loader
jax.devices()
known = set(sys.modules)

def load(item, arrays, seed):
    arrays["x"][...] = item

async def main():
    group = DataGroup(4, range(8), loader_arrays={"x": ((), "int32", "int32")})
    async with Loader(load, group, num_workers=0, end_at=("epoch", 1)) as loader:
        async for batch in loader:
            del batch

asyncio.run(main())
print(*{name.partition(".")[0] for name in set(sys.modules) - known})
"""


def test_the_first_batch_imports_nothing(tmp_path: Path) -> None:
    """That would block the loop, and take longer than all else before a first batch."""
    output, errors = script(tmp_path, _IMPORTS).communicate(timeout=60)
    assert errors == ""
    assert not {"aioloader", "anyio", "asyncio", "numpy"} & set(output.split())
