"""Reading ahead by threads: in order, within bounds, and begun when it is asked for."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from gates import AsyncGate, Gate
from support import until

from aioloader import MapDataset, ReadOptions
from aioloader._datasets.room import Room, rough_size


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
    thing = Thing()
    thing.__dict__["itself"] = [thing, thing]
    assert 200 < rough_size(thing) < 200_000
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


@pytest.mark.parametrize("threads", [1, 3])
async def test_elements_in_threads_keep_no_others_from_being_awaited(threads: int) -> None:
    """So that decoding one does not delay the request for another; with one thread it does."""
    held, awaited = threading.Event(), 0

    async def fetch(index: int) -> int:
        nonlocal awaited
        awaited += 1
        return index

    def decode(index: int) -> int:
        if index >= threads:
            held.wait()
        return index

    dataset = MapDataset.range(20).map(fetch).map(decode)
    options = ReadOptions(num_threads=threads, prefetch_buffer_size=12)
    async with aiter(dataset.to_iter_dataset(options)) as iterator:
        assert await anext(iterator) == 0
        try:
            await until(lambda: awaited >= (2 if threads == 1 else 3 * threads))
            assert awaited == (2 if threads == 1 else 3 * threads)
        finally:
            held.set()
        assert [x async for x in iterator] == list(range(1, 20))
