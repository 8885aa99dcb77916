"""Datasets and iterators of one's own, plain, async and generated, in pipelines."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from pipelines import plus_one
from support import both_loops, run_on, until

from aioloader import DatasetIterator, IterDataset, MapDataset, ReadOptions


class _Every(IterDataset[int]):
    """Every n-th element, by a plain iterator."""

    def __init__(self, parent: IterDataset[int], n: int) -> None:
        super().__init__(parent)
        self.n = n

    def __iter__(self) -> DatasetIterator[int]:
        return _EveryIterator(self._parent.__iter__(), self.n)


class _EveryIterator(DatasetIterator[int]):
    def __init__(self, parent: DatasetIterator[int], n: int) -> None:
        super().__init__(parent)
        self.n = n
        self.threads: set[int] = set()

    def __next__(self) -> int:
        self.threads.add(threading.get_ident())
        element = next(self._parent)
        for _ in range(self.n - 1):
            next(self._parent, None)
        return element  # type: ignore[no-any-return]

    def get_state(self) -> dict[str, Any]:
        return {"parent": self._parent.get_state(), "n": self.n}

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["parent"])
        self.n = state["n"]


class _Twice(_EveryIterator):
    def __next__(self) -> int:
        return 2 * super().__next__()

    def get_state(self) -> dict[str, Any]:
        return {"twice": super().get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state["twice"])


class _Awaited(IterDataset[int]):
    """Elements and one, by an async iterator."""

    def __iter__(self) -> DatasetIterator[int]:
        return _AwaitedIterator(self._parent.__iter__())


class _AwaitedIterator(DatasetIterator[int]):
    async def __anext__(self) -> int:
        await asyncio.sleep(0)
        return 1 + await anext(self._parent)  # type: ignore[no-any-return]

    def get_state(self) -> dict[str, Any]:
        return self._parent.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state)


class _Generated(IterDataset[int]):
    """Each element twice, by a generator."""

    def __iter__(self) -> Any:
        for element in self._parent:
            yield element
            yield element


def _own(kind: str) -> Any:
    numbers = MapDataset.source(list(range(10))).map(lambda x: x).to_iter_dataset()
    return {
        "plain": lambda: _Every(numbers, 2),
        "plain over async": lambda: _Every(numbers.map(plus_one), 2),
        "async": lambda: _Awaited(numbers),
        "async over async": lambda: _Awaited(numbers.map(plus_one)),
        "generated": lambda: _Generated(numbers).map(lambda x: x),
        "in the middle": lambda: _Awaited(_Every(numbers, 2).map(plus_one)).map(lambda x: 10 * x),
    }[kind]()


OWN = ["plain", "plain over async", "async", "async over async", "generated", "in the middle"]


@both_loops
@pytest.mark.parametrize("kind", OWN)
def test_own_datasets_and_iterators_work_in_both_ways(loop: str, kind: str) -> None:
    """With batches after them, saved and restored, and both ways in turn."""
    expected = {
        "plain": [0, 2, 4, 6, 8],
        "plain over async": [1, 3, 5, 7, 9],
        "async": list(range(1, 11)),
        "async over async": list(range(2, 12)),
        "generated": [x for x in range(10) for _ in range(2)],
        "in the middle": [20, 40, 60, 80, 100],
    }[kind]

    async def elements(iterator: Any, count: int | None = None) -> list[Any]:
        if count is None:
            return [x async for x in iterator]
        return [await anext(iterator) for _ in range(count)]

    assert list(_own(kind)) == expected
    assert run_on(loop, elements(_own(kind))) == expected
    assert next(iter(_own(kind).batch(3, batch_fn=len))) == 3
    iterator = iter(_own(kind))
    first = run_on(loop, elements(iterator, 2))
    first.append(next(iterator))
    state = json.loads(json.dumps(iterator.get_state()))
    rest = run_on(loop, elements(iterator))
    assert first + rest == expected
    again = iter(_own(kind))
    again.set_state(state)
    assert list(again) == rest


def test_own_iterators_may_derive_from_others() -> None:
    """What they call by `super` is the method itself."""
    numbers = MapDataset.range(10).to_iter_dataset()
    iterator = _Twice(iter(numbers), 3)

    async def one() -> int:
        return await anext(iterator)

    assert [next(iterator), asyncio.run(one()), next(iterator)] == [0, 6, 12]
    assert iterator.get_state() == {"twice": {"parent": {"next_index": 9}, "n": 3}}
    iterator.set_state({"twice": {"parent": {"next_index": 4}, "n": 3}})
    assert list(iterator) == [8, 14]


async def test_a_cancelled_wait_for_an_own_async_iterator_loses_nothing() -> None:
    """Its call goes on, and the next one waits for that."""
    opened = asyncio.Event()

    async def wait(x: int) -> int:
        if x == 1:
            await opened.wait()
        return x

    numbers = MapDataset.range(5).to_iter_dataset(ReadOptions(1, 1)).map(wait)
    iterator = iter(_Awaited(numbers))
    assert await anext(iterator) == 1
    for is_last in (False, False, True):
        waiting = asyncio.ensure_future(anext(iterator))
        for _ in range(20):
            await asyncio.sleep(0)
        if not is_last:
            waiting.cancel()
            await asyncio.wait([waiting])
    opened.set()
    assert await waiting == 2
    assert [x async for x in iterator] == [3, 4, 5]
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def test_own_plain_iterators_do_not_run_on_the_loop() -> None:
    """Their `__next__` is called in a thread."""
    iterator = iter(_own("plain"))
    assert isinstance(iterator, _EveryIterator)
    assert [x async for x in iterator] == [0, 2, 4, 6, 8]
    assert threading.get_ident() not in iterator.threads


async def test_own_async_iterators_run_on_the_programs_loop() -> None:
    """Also beneath plain ones, where there is one."""
    loops = set()

    async def note(x: int) -> int:
        loops.add(asyncio.get_running_loop())
        return x

    numbers = MapDataset.range(6).to_iter_dataset()
    assert [x async for x in _Every(numbers.map(note), 2).map(lambda x: x)] == [0, 2, 4]
    assert loops == {asyncio.get_running_loop()}
