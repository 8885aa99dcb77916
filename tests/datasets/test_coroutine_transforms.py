"""Coroutine functions in pipelines: many at once, in order, on the loop; others never there."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from gates import AsyncGate
from support import both_loops, run_on, until

from aioloader import IterDataset, MapDataset, ReadOptions


def _pipelines(gate: Any, options: ReadOptions) -> dict[str, IterDataset[Any]]:
    numbers = MapDataset.source(list(range(40)))

    async def draw(x: int, rng: np.random.Generator) -> int:
        return await gate(x)  # type: ignore[no-any-return]

    async def at(index: int, x: int) -> int:
        return await gate(x)  # type: ignore[no-any-return]

    async def keep(x: int) -> bool:
        return await gate(x) >= 0  # type: ignore[no-any-return]

    read = numbers.to_iter_dataset(options)
    return {
        "dataset": numbers.map(gate).to_iter_dataset(options),
        "batches": numbers.map(gate).batch(8, batch_fn=list).to_iter_dataset(options),
        "map": read.map(gate),
        "map_with_index": read.map_with_index(at),
        "random_map": read.random_map(draw, seed=1),
        "filter": read.filter(keep),
    }


PIPELINES = ["dataset", "batches", "map", "map_with_index", "random_map", "filter"]


@both_loops
@pytest.mark.parametrize("kind", PIPELINES)
def test_as_many_coroutines_run_at_once_as_there_are_threads(loop: str, kind: str) -> None:
    """On the program's loop, and their results come in order."""
    gate = AsyncGate()
    dataset = _pipelines(gate, ReadOptions(5, 20))[kind]

    async def main() -> list[Any]:
        reading = asyncio.ensure_future(_elements(dataset))
        await until(lambda: len(gate.calls) == 5)
        gate.open()
        return await reading

    elements = run_on(loop, main())
    if kind == "batches":
        elements = [x for batch in elements for x in batch]
    assert elements == list(range(40))
    assert gate.most == 5
    assert gate.threads == {threading.current_thread().name}


async def _elements(dataset: Any) -> list[Any]:
    return [x async for x in dataset]


@pytest.mark.parametrize("kind", PIPELINES)
async def test_never_more_run_at_once_though_there_is_room(kind: str) -> None:
    """Also once the first are done."""
    gate = AsyncGate()

    async def work(x: int) -> int:
        return x if x < 16 else await gate(x)

    reading = asyncio.ensure_future(_elements(_pipelines(work, ReadOptions(3, 20))[kind]))
    await until(lambda: gate.running == 3)
    for _ in range(50):
        await asyncio.sleep(0)
    gate.open()
    assert len(await reading) == (5 if kind == "batches" else 40)
    assert gate.most == 3


async def test_a_range_has_threads_to_spare_for_coroutines() -> None:
    """It needs none for itself; what comes after it has the defaults."""
    gate = AsyncGate()
    reading = asyncio.ensure_future(_elements(MapDataset.range(40).to_iter_dataset().map(gate)))
    await until(lambda: len(gate.calls) == 16)
    gate.open()
    assert await reading == list(range(40))
    assert gate.most == 16


async def test_results_come_in_order_though_calls_end_out_of_order() -> None:
    """A slow one holds its place."""
    slow = asyncio.Event()
    done: list[int] = []

    async def work(x: int) -> int:
        if x == 3:
            await slow.wait()
        done.append(x)
        if len(done) == 10:
            slow.set()
        return x

    numbers = MapDataset.range(20).to_iter_dataset(ReadOptions(4, 50)).map(work)
    assert await _elements(numbers) == list(range(20))
    assert done.index(3) >= 10


async def test_no_more_is_under_way_than_there_is_room_for() -> None:
    """A consumer that stops is not run away from."""
    calls: list[int] = []

    async def note(x: int) -> int:
        calls.append(x)
        return x

    numbers = MapDataset.range(100).to_iter_dataset(ReadOptions(3, 7)).map(note)
    iterator = iter(numbers)
    for k in range(30):
        assert await anext(iterator) == k
        for _ in range(30):
            await asyncio.sleep(0)
        assert len(calls) <= k + 1 + 7
    await until(lambda: len(calls) == 37)
    await iterator.aclose()


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_plain_for_waits_for_coroutines_on_a_loop_of_its_own(kind: str) -> None:
    """In a thread, which ends with it."""

    async def wait(x: int) -> int:
        await asyncio.sleep(0)
        return x

    elements = list(_pipelines(wait, ReadOptions(4, 8))[kind])
    if kind == "batches":
        elements = [x for batch in elements for x in batch]
    assert elements == list(range(40))


@pytest.mark.parametrize("kind", PIPELINES)
async def test_a_plain_for_over_coroutines_is_refused_in_a_running_loop(kind: str) -> None:
    """It would block it; the error says what to write."""

    async def wait(x: int) -> int:
        return x

    with pytest.raises(RuntimeError, match="async for"):
        list(_pipelines(wait, ReadOptions())[kind])


@both_loops
def test_plain_functions_never_run_on_the_loop(loop: str) -> None:
    """Wherever they are in a pipeline; coroutine functions only there."""
    seen: dict[str, set[str]] = {}

    def here(name: str) -> None:
        seen.setdefault(name, set()).add(threading.current_thread().name)

    class Numbers:
        def __len__(self) -> int:
            return 30

        def __getitem__(self, index: int) -> int:
            here("source")
            return index

    def note(name: str) -> Any:
        def function(x: Any, rng: Any = None) -> Any:
            here(name)
            return x

        return function

    async def fetch(x: int) -> int:
        await asyncio.sleep(0)
        here("fetch")
        return x

    async def judge(x: Any) -> bool:
        here("judge")
        return True

    numbers = MapDataset.source(Numbers()).map(note("before")).map(fetch).map(note("after"))
    first = numbers.to_iter_dataset(ReadOptions(3, 9)).map(note("map")).filter(judge)
    second = MapDataset.source(Numbers()).to_iter_dataset(ReadOptions(0, 0)).map(note("direct"))
    mixed = IterDataset.mix([first.filter(note("filter")), second.random_map(note("rng"), seed=1)])
    dataset = mixed.batch(4, batch_fn=note("batch"))
    assert run_on(loop, _elements(dataset))
    main = threading.current_thread().name
    on_loop = {name for name, threads in seen.items() if main in threads}
    assert on_loop == {"fetch", "judge"}
    assert all(threads == {main} for name, threads in seen.items() if name in on_loop)
    names = {"source", "before", "after", "map", "filter", "direct", "rng", "batch"}
    assert names | on_loop == set(seen)


async def test_stacking_of_batches_is_not_done_on_the_loop() -> None:
    """Though elements are taken there."""
    threads: set[str] = set()

    class Traced(np.ndarray):
        pass

    def make(x: int) -> np.ndarray:
        return np.full(3, x)

    def stack(elements: list[np.ndarray]) -> np.ndarray:
        threads.add(threading.current_thread().name)
        return np.stack(elements)

    async def fetch(x: int) -> np.ndarray:
        return make(x)

    for dataset in (
        MapDataset.source(list(range(9))).map(make).to_iter_dataset(),
        MapDataset.source(list(range(9))).map(fetch).to_iter_dataset(),
    ):
        batches = await _elements(dataset.batch(4, batch_fn=stack))
        assert [len(batch) for batch in batches] == [4, 4, 1]
    assert threading.current_thread().name not in threads


async def test_the_loop_gets_its_turns_while_elements_are_there() -> None:
    """Iterating over what never has to be waited for does not keep others from it."""
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(tick())
    async for _ in MapDataset.source(list(range(20_000))).to_iter_dataset():
        pass
    ticking.cancel()
    assert turns > 3
