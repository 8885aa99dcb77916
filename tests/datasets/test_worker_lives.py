"""Workers of a dataset: when they start, how long they stay, and what ends them."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from crews import manned
from support import descendants, is_alive, script, until

from aioloader import (
    MapDataset,
    MultiprocessingOptions,
    is_worker,
)
from aioloader._executors.forkserver import ForkContext

if TYPE_CHECKING:
    from pathlib import Path


def me(element: Any) -> Any:
    """Return an element, and who made it."""
    return element, os.getpid(), is_worker()


def test_functions_run_in_workers_as_far_as_that_changes_nothing() -> None:
    """What works on single elements, up to the first stage that looks at several."""
    dataset = MapDataset.range(8).map(me).to_iter_dataset().filter(lambda e: e[0] != 3).map(me)
    with iter(manned(dataset)) as iterator:
        for (_, first, inside), second, outside in iterator:
            assert inside
            assert outside
            assert first == second != os.getpid()
    later = dataset.map_with_index(lambda i, e: (i, os.getpid()))
    with iter(manned(later)) as iterator:
        assert list(iterator) == [(i, os.getpid()) for i in range(7)]


def private_mib() -> float:
    """Return the memory that only this process has."""
    with open("/proc/self/smaps_rollup") as lines:
        sizes = [line.split() for line in list(lines)[1:]]
    return sum(int(size[1]) for size in sizes if size[0].startswith("Private_")) / 1024


def test_a_worker_has_little_memory_of_its_own(tmp_path: Path) -> None:
    """What datasets consist of is imported once: 10 MiB above a process with numpy, at most."""
    told = tmp_path / "bare"
    program = (
        f"{inspect.getsource(private_mib)}\nopen({str(told)!r}, 'w').write(str(private_mib()))"
    )
    bare = ForkContext().Process(target=exec, args=(program,))
    bare.start()
    bare.join()
    bare.close()
    dataset = MapDataset.range(40).map(lambda _: private_mib()).to_iter_dataset().batch(4)
    with iter(manned(dataset)) as iterator:
        most = max(batch.max() for batch in iterator)
    assert most - float(told.read_text()) < 10


def test_the_init_function_is_called_once_in_each_worker(tmp_path: Path) -> None:
    """With its index and their count, before anything else."""

    def begin(index: int, count: int) -> None:
        (tmp_path / f"{index} of {count} {os.getpid()}").write_text("")

    def check(element: int) -> int:
        return sum(path.name.endswith(f" {os.getpid()}") for path in tmp_path.iterdir())

    dataset = MapDataset.range(40).map(check).to_iter_dataset()
    dataset = dataset.mp_prefetch(MultiprocessingOptions(num_workers=3), begin)
    for _ in range(2):
        assert set(dataset) == {1}
    assert {path.name.rpartition(" ")[0] for path in tmp_path.iterdir()} <= {
        "0 of 3",
        "1 of 3",
        "2 of 3",
    }


def test_workers_start_with_the_first_element_and_stay(tmp_path: Path) -> None:
    """Neither `iter` nor a position starts them; the next epoch has the same ones."""
    before = set(descendants(os.getpid()))
    dataset = manned(MapDataset.range(40).map(me).to_iter_dataset())
    iterator = iter(dataset)
    iterator.get_state()
    iterator.set_state(iterator.get_state())
    assert set(descendants(os.getpid())) == before
    pids = [{pid for _, pid, _ in epoch} for epoch in (iterator, dataset, dataset)]
    started = set(descendants(os.getpid())) - before
    assert set.union(*pids) <= started
    iterator.close()


async def test_prefetching_can_begin_before_the_first_element() -> None:
    before = set(descendants(os.getpid()))
    async with aiter(manned(MapDataset.range(40).map(me).to_iter_dataset())) as iterator:
        iterator.start_prefetch()
        iterator.start_prefetch()
        await until(lambda: len(set(descendants(os.getpid())) - before) >= 2)
        assert iterator.get_state() == {"next_index": 0}
        assert (await anext(iterator))[0] == 0


async def test_closing_ends_the_workers_and_the_iterator() -> None:
    """Also while others of the same dataset go on, which keep theirs."""
    dataset = manned(MapDataset.range(1000).map(me).to_iter_dataset())
    first, second = iter(dataset), iter(dataset)
    next(first)
    _, pid, _ = next(second)
    await first.aclose()
    await first.aclose()
    assert first.get_state() == {"next_index": 1}
    with pytest.raises(ValueError, match="closed"):
        next(first)
    assert is_alive(pid)
    assert next(second)[0] == 1
    await second.aclose()
    await until(lambda: not is_alive(pid))
    await until(lambda: all(t.name != "aioloader-datasets" for t in threading.enumerate()))
    assert next(iter(dataset))[0] == 0


async def test_what_is_left_behind_ends_with_the_dataset() -> None:
    dataset = manned(MapDataset.range(1000).map(me).to_iter_dataset())
    for element in dataset:
        _, pid, _ = element
        break
    assert is_alive(pid)
    del dataset
    gc.collect()
    await until(lambda: not is_alive(pid))


async def test_closing_does_not_wait_for_a_function_that_is_stuck() -> None:
    """Its worker is ended."""
    stuck = threading.Event
    dataset = MapDataset.range(9).map(lambda x: x and (os.getpid(), stuck().wait()))
    iterator = iter(manned(dataset.to_iter_dataset(), 1))
    before = set(descendants(os.getpid()))
    assert next(iterator) == 0
    await until(lambda: set(descendants(os.getpid())) - before)
    iterator.close()
    await until(lambda: set(descendants(os.getpid())) <= before)


async def test_a_cancelled_wait_loses_nothing() -> None:
    slow = MapDataset.range(12).map(lambda x: threading.Event().wait(0.02) or x)
    async with aiter(manned(slow.to_iter_dataset(), 1)) as iterator:
        got = []
        while len(got) < 12:
            try:
                got.append(await asyncio.wait_for(anext(iterator), 0.005))
            except TimeoutError:
                continue
    assert got == list(range(12))


LEAVER = """
from aioloader import MapDataset, MultiprocessingOptions
dataset = MapDataset.range(1 << 40).map(lambda x: x).to_iter_dataset()
iterator = iter(dataset.mp_prefetch(MultiprocessingOptions(num_workers=2)))
print([next(iterator) for _ in range(3)])
"""


def test_a_program_may_end_without_closing_anything(tmp_path: Path) -> None:
    """It ends at once, and says nothing."""
    program = script(tmp_path, LEAVER)
    out, err = program.communicate(timeout=30)
    assert (program.returncode, out, err) == (0, "[0, 1, 2]\n", "")
