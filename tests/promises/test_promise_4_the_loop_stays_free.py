"""Promise 4: no step on the event loop grows with the batch; nothing there copies or blocks.

Steps are measured in CPU time of the loop's thread, which other programs do not disturb.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import run_on

from aioloader import DataGroup, Loader

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def step_seconds() -> Iterator[list[float]]:
    """Record the CPU seconds of each callback that asyncio's loop runs."""
    steps: list[float] = []
    plain = asyncio.Handle._run  # type: ignore[attr-defined]

    def timed(handle: asyncio.Handle) -> Any:
        started = time.thread_time()
        try:
            return plain(handle)
        finally:
            steps.append(time.thread_time() - started)

    asyncio.Handle._run = timed  # type: ignore[attr-defined]
    gc.collect()
    gc.disable()  # a collection is as long as the whole program has objects
    try:
        yield steps
    finally:
        gc.enable()
        asyncio.Handle._run = plain  # type: ignore[attr-defined]


def _fill(item: int, arrays: Any, seed: int | None) -> None:
    arrays["x"][...] = item


def _fill_many(items: Any, arrays: Any, seeds: Any) -> None:
    arrays["x"][...] = np.asarray(items)[:, None]


async def _fill_async(item: int, arrays: Any, seed: int | None) -> None:
    arrays["x"][...] = item


async def _steps_of(batch_size: int, batches: int, **options: Any) -> tuple[list[float], float]:
    """Return the steps after the first batches, and the loop's CPU seconds for a batch."""
    width = options.pop("width", 4)
    load = options.pop("load", _fill)
    data = options.pop("data", range(10**9))
    arrays = {"x": ((width,), "int32", "int32")}
    group = DataGroup(batch_size, data, loader_arrays=arrays, **options.pop("group", {}))
    loader = Loader(load, group, end_at=("batch", batches), **options)
    with step_seconds() as steps:
        async with loader:
            async for batch in loader:
                if batch.batch_num == 3:
                    steps.clear()
                    started = time.thread_time()
                del batch
            return list(steps), (time.thread_time() - started) / (batches - 4)


CASES: dict[str, dict[str, Any]] = {
    "processes": {"num_workers": 2},
    "vectorized": {"num_workers": 1, "vectorized": True, "load": _fill_many},
    "shuffled": {"num_workers": 1, "group": {"shuffle_first": True}, "load": _fill_many,
                 "vectorized": True},
    "list": {"num_workers": 1, "data": list(range(100_000)), "load": _fill_many,
             "vectorized": True},
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_steps_do_not_grow_with_the_batch(case: str) -> None:
    """Batches of 40,000 rows: nearly every step is under a millisecond, and none is long."""
    rows = 40_000 if case != "list" else 10_000
    steps, _ = run_on("asyncio", _steps_of(rows, 10, **CASES[case]))
    ordered = sorted(steps)
    assert ordered[int(len(ordered) * 0.95)] < 1e-3
    assert ordered[-1] < 8e-3


def test_the_loops_share_of_a_batch_does_not_grow_with_its_bytes() -> None:
    """1 KiB or 4 MiB a batch: the loop's thread copies nothing."""
    small = statistics.median(
        run_on("asyncio", _steps_of(8, 40, width=32, num_workers=1))[1] for _ in range(3)
    )
    large = statistics.median(
        run_on("asyncio", _steps_of(8, 40, width=128 * 1024, num_workers=1))[1] for _ in range(3)
    )
    assert large < 3 * small + 1e-3  # copying 4 MiB takes 1 ms and more even when warm


def test_slow_data_do_not_block_the_loop() -> None:
    """A sequence whose items take long to look up is asked in a thread."""

    class Slow:
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: int) -> int:
            sum(range(20_000))  # about half a millisecond
            return index

    steps, _ = run_on("asyncio", _steps_of(32, 8, data=Slow(), num_workers=1))
    ordered = sorted(steps)
    assert ordered[-3] < 4e-3  # looking up a batch takes four times that


def test_a_slow_place_does_not_block_the_loop() -> None:
    """A strategy of the user's runs in the helper thread."""

    def place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
        import jax

        total = sum(range(2_000_000))  # tens of milliseconds
        assert total
        return {name: jax.device_put(array) for name, array in arrays.items()}

    steps, _ = run_on("asyncio", _steps_of(8, 8, num_workers=0, place=place))
    assert sorted(steps)[-2] < 8e-3


def test_a_consumer_that_never_waits_does_not_stop_the_refilling() -> None:
    """With a step that blocks, batches are ready when it is over: the work is in the queue."""

    async def main() -> float:
        arrays = {"x": ((4,), "int32", "int32")}

        def load(item: int, arrays: Any, seed: int | None) -> None:
            time.sleep(0.002)
            arrays["x"][...] = item

        group = DataGroup(8, range(10**6), loader_arrays=arrays)
        async with Loader(load, group, num_workers=2, depth=4, end_at=("batch", 30)) as loader:
            async for batch in loader:
                del batch
                time.sleep(0.03)  # the step: blocks the loop, and longer than a load takes
            return loader.statistics().idle_share

    assert run_on("asyncio", main()) < 0.35
