"""Promise 7: building, shuffling, resuming and the first batch cost the same for any length."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest
from support import run_on, simple_load

from aioloader import DataGroup, Loader

ARRAYS = {"x": ((4,), "int64", "int32"), "y": ((), "float32", "float32")}


async def _first_batch(length: int, start: tuple[int, int]) -> tuple[float, int]:
    """Return the CPU seconds and the peak bytes from building the group to the first batch."""
    tracemalloc.start()
    started = time.thread_time()
    group = DataGroup(8, range(length), loader_arrays=ARRAYS, shuffle_first=True)
    loader = Loader(simple_load, group, start_at=start, num_workers=0)
    async with loader:
        batch = await anext(loader)
        seconds = time.thread_time() - started
        assert batch.is_training
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds, peak


@pytest.mark.parametrize("start", [(0, 0), (4, 0), (4, 10_000)])
def test_a_billion_items_cost_what_five_thousand_do(start: tuple[int, int]) -> None:
    """Shuffled item by item, four epochs ahead: in the loop's CPU time and in memory."""
    small = [run_on("asyncio", _first_batch(5_000, start)) for _ in range(5)]
    large = [run_on("asyncio", _first_batch(10**9, start)) for _ in range(5)]
    assert min(large)[0] < 2 * min(small)[0] + 2e-3
    assert min(peak for _, peak in large) < min(peak for _, peak in small) + 300_000


def test_a_lazy_sequence_is_asked_only_for_what_is_loaded() -> None:
    """It is never materialised, and neither copied nor walked."""
    asked: list[int] = []

    class Lazy:
        def __len__(self) -> int:
            return 10**12

        def __getitem__(self, index: int) -> int:
            asked.append(index)
            return index

    async def main() -> None:
        group = DataGroup(4, Lazy(), loader_arrays=ARRAYS, shuffle_first=True)
        async with Loader(simple_load, group, num_workers=0, depth=2) as loader:
            batch = await anext(loader)
            assert list(batch.indices) == asked[:4]

    run_on("asyncio", main())
    assert len(asked) <= 16


def test_an_iterator_is_read_once_and_kept() -> None:
    """What has no length is materialised, so that it can be shuffled."""
    group = DataGroup(2, iter("abcd"), loader_arrays=ARRAYS)
    assert list(group) == ["a", "b", "c", "d"]
    assert group.batch_count == 2


def test_resuming_deep_in_an_epoch_does_not_replay() -> None:
    """The items of the batches before are not even looked at."""
    asked: list[Any] = []

    class Data:
        def __len__(self) -> int:
            return 10**8

        def __getitem__(self, index: int) -> int:
            asked.append(index)
            return index

    async def main() -> None:
        group = DataGroup(4, Data(), loader_arrays=ARRAYS)
        loader = Loader(simple_load, group, num_workers=0, depth=1)
        state = loader.get_state() | {"position": 24_750_000}
        loader.set_state(state)
        async with loader:
            batch = await anext(loader)
            assert batch.indices == range(99_000_000, 99_000_004)

    run_on("asyncio", main())
    assert asked == [99_000_000, 99_000_001, 99_000_002, 99_000_003]
