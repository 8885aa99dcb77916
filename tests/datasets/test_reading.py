"""Reading ahead: threads and coroutines, in order, within bounds, never on the loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from support import both_loops, run_on, until

from aioloader import IterDataset, MapDataset, ReadOptions
from aioloader._datasets.room import Room, rough_size


class Gate:
    """A function of elements that waits until it is opened, and counts its calls."""

    def __init__(self, *, opened: bool = False) -> None:
        self.calls: list[int] = []
        self.threads: set[str] = set()
        self.running = self.most = 0
        self._lock = threading.Lock()
        self._open = threading.Event()
        if opened:
            self._open.set()

    def open(self) -> None:
        self._open.set()

    def __call__(self, x: int) -> int:
        with self._lock:
            self.calls.append(x)
            self.threads.add(threading.current_thread().name)
            self.running += 1
            self.most = max(self.most, self.running)
        assert self._open.wait(30)
        with self._lock:
            self.running -= 1
        return x


class AsyncGate(Gate):
    """The same as a coroutine function."""

    def __init__(self) -> None:
        super().__init__()
        self.event: asyncio.Event | None = None

    def open(self) -> None:
        assert self.event is not None
        self.event.set()

    async def __call__(self, x: int) -> int:  # type: ignore[override]
        self.event = self.event or asyncio.Event()
        self.calls.append(x)
        self.threads.add(threading.current_thread().name)
        self.running += 1
        self.most = max(self.most, self.running)
        await self.event.wait()
        self.running -= 1
        return x


@pytest.mark.parametrize(("threads", "buffer"), [(1, 1), (3, 3), (3, 8), (8, 100)])
@pytest.mark.parametrize("on_loop", [False, True])
async def test_threads_work_ahead_at_once_and_in_order(
    threads: int, buffer: int, on_loop: bool
) -> None:
    """As many as there are; a buffer's worth once the first are there."""
    gate = Gate()
    dataset = MapDataset.source(list(range(60))).map(gate)
    iterator = iter(dataset.to_iter_dataset(ReadOptions(threads, buffer)))
    iterator.start_prefetch()
    await until(lambda: len(gate.calls) == threads)
    assert gate.most == threads
    gate.open()
    first = [await anext(iterator) if on_loop else next(iterator) for _ in range(20)]
    await until(lambda: len(gate.calls) == min(20 + buffer, 60))
    rest = [x async for x in iterator] if on_loop else list(iterator)
    assert first + rest == list(range(60))
    assert sorted(gate.calls) == list(range(60))
    assert gate.most <= threads
    assert all(name.startswith("aioloader-read") for name in gate.threads)


@pytest.mark.parametrize("options", [(0, 500), (16, 0), (0, 0)])
def test_without_threads_or_buffer_nothing_is_made_ahead(options: tuple[int, int]) -> None:
    """It happens in the thread that asks."""
    gate = Gate(opened=True)
    dataset = MapDataset.source(list(range(9))).map(gate)
    iterator = iter(dataset.to_iter_dataset(ReadOptions(*options)))
    iterator.start_prefetch()
    assert gate.calls == []
    assert [next(iterator), next(iterator)] == [0, 1]
    assert gate.calls == [0, 1]
    assert gate.threads == {threading.current_thread().name}


def test_the_buffer_is_bounded_in_bytes() -> None:
    """Elements are sized as they pass, and few of large ones are kept."""
    gate = Gate(opened=True)
    large = MapDataset.source(list(range(200))).map(gate).map(lambda x: np.zeros(10_000, np.uint8))
    options = ReadOptions(2, 100, prefetch_buffer_bytes=50_000)
    iterator = iter(large.to_iter_dataset(options))
    for k in range(100):
        next(iterator)
        assert len(gate.calls) <= k + 1 + 5
    iterator.close()


def test_elements_are_sized_roughly() -> None:
    """By their arrays and strings; of a long list only the beginning is looked at."""

    class Thing:
        def __init__(self) -> None:
            self.array = np.zeros(100, np.int16)

    assert rough_size(np.zeros((3, 5))) == 120
    assert rough_size({"a": np.zeros(10), "b": (b"1234", 3)}) == 80 + 68 + 64
    assert rough_size([np.zeros(10)] * 1000) == 80_000
    assert rough_size([]) > 0
    assert rough_size(Thing()) == 200
    assert rough_size(object()) > 0
    room = Room(ReadOptions(4, 100, prefetch_buffer_bytes=1000))
    assert room.limit == 4
    room.measure(np.zeros(100, np.uint8))
    assert room.limit == 10
    for _ in range(50):
        room.measure(np.zeros(5000, np.uint8))
    assert room.limit == 1
    for _ in range(1000):
        room.measure(None)
    assert room.limit > 10


def test_taking_an_element_does_not_look_at_the_others() -> None:
    """What lies ready is not gone through, however much it is."""
    looked = 0

    class Counted:
        @property
        def nbytes(self) -> int:
            nonlocal looked
            looked += 1
            return 8

    dataset = MapDataset.source([Counted() for _ in range(2000)]).map(lambda x: x)
    assert len(list(dataset.to_iter_dataset(ReadOptions(2, 1000)))) == 2000
    assert looked <= 2000


async def test_start_prefetch_begins_and_does_so_once() -> None:
    """In threads, on the loop, and through stages after them."""
    gate, on_loop = Gate(opened=True), AsyncGate()
    numbers = MapDataset.source(list(range(9)))
    iterator = iter(numbers.map(gate).to_iter_dataset().map(abs).batch(2))
    for _ in range(2):
        iterator.start_prefetch()
        await until(lambda: len(gate.calls) == 9)
    other = iter(numbers.to_iter_dataset().map(on_loop).map(abs))
    other.start_prefetch()
    await until(lambda: len(on_loop.calls) == 9)
    assert on_loop.threads == {threading.current_thread().name}
    on_loop.open()
    assert [x async for x in other] == list(range(9))
    assert (await anext(iterator)).tolist() == [0, 1]
    for begun in (iterator, other):
        begun.close()
        with pytest.raises(ValueError, match="closed"):
            begun.start_prefetch()


def test_start_prefetch_begins_without_a_loop_too() -> None:
    """What it begins is what `for` goes on with."""
    calls: list[int] = []
    begun = threading.Event()

    async def note(x: int) -> int:
        calls.append(x)
        if x == 8:
            begun.set()
        return x

    iterator = iter(MapDataset.source(list(range(9))).map(note).to_iter_dataset())
    iterator.start_prefetch()
    assert begun.wait(20)
    assert list(iterator) == list(range(9)) == calls


# Coroutine functions


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
