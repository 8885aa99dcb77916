"""DatasetIterator: positions, both kinds of iteration of one object, errors, and its end."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import both_loops, run_on, until

from aioloader import DatasetIterator, IterDataset, MapDataset, ReadOptions
from aioloader.testing import no_leaks

if TYPE_CHECKING:
    import numpy as np

LENGTH = 23
OPTIONS = [ReadOptions(0, 0), ReadOptions(1, 1), ReadOptions(2, 3), ReadOptions(4, 50)]


async def _plus_one(x: int) -> int:
    await asyncio.sleep(0)
    return x + 1


async def _is_no_seven(x: int) -> bool:
    await asyncio.sleep(0)
    return x % 7 != 0


async def _draw(x: int, rng: np.random.Generator) -> int:
    first = rng.integers(100)
    await asyncio.sleep(0)
    return x + int(first) + int(rng.integers(100))


STAGES: dict[str, Any] = {
    "map": lambda ds: ds.map(lambda x: x + 1),
    "map_with_index": lambda ds: ds.map_with_index(lambda i, x: 100 * i + x),
    "random_map": lambda ds: ds.random_map(lambda x, rng: x + int(rng.integers(100)), seed=3),
    "filter": lambda ds: ds.filter(lambda x: x % 3 != 0),
    "batch": lambda ds: ds.batch(3, batch_fn=sum),
    "mix": lambda ds: IterDataset.mix([ds, MapDataset.range(50, 90).to_iter_dataset()], [2, 1]),
    "async map": lambda ds: ds.map(_plus_one),
    "async filter": lambda ds: ds.filter(_is_no_seven),
    "async random_map": lambda ds: ds.random_map(_draw, seed=4),
}


def pipeline(stages: list[str], options: ReadOptions, *, is_async: bool = False) -> Any:
    """Return a dataset of whole numbers."""
    numbers = MapDataset.source(list(range(LENGTH))).seed(1).shuffle()
    numbers = numbers.map(_plus_one) if is_async else numbers.map(lambda x: x + 1)
    dataset = numbers.to_iter_dataset(options)
    for stage in stages:
        dataset = STAGES[stage](dataset)
    return dataset


def shape_of(state: Any) -> Any:
    """Return what of a state must not change: its keys, its types, and how many parts it has."""
    if isinstance(state, dict):
        return {key: shape_of(value) for key, value in state.items()}
    if isinstance(state, list):
        return [shape_of(value) for value in state]
    return type(state)


@settings(max_examples=60, deadline=None)
@given(
    stages=st.lists(st.sampled_from(list(STAGES)), max_size=4),
    is_async=st.booleans(),
    stops=st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.sampled_from(OPTIONS))),
)
def test_pieces_joined_are_the_whole(
    stages: list[str], is_async: bool, stops: list[tuple[int, bool, ReadOptions]]
) -> None:
    """Saved and restored at random points, in both kinds of iteration, under any options."""
    whole = list(pipeline(stages, OPTIONS[0], is_async=is_async))
    pieces, state, shapes = [], None, []

    def begin(options: ReadOptions) -> Any:
        iterator = iter(pipeline(stages, options, is_async=is_async))
        if state is not None:
            iterator.set_state(json.loads(json.dumps(state)))
        shapes.append(shape_of(iterator.get_state()))
        return iterator

    async def take(iterator: Any, count: int) -> None:
        async for element in iterator:
            pieces.append(element)
            if (count := count - 1) == 0:
                break

    for count, on_loop, options in stops:
        iterator = begin(options)
        if on_loop and count:
            asyncio.run(take(iterator, count))
        else:
            pieces += [x for _, x in zip(range(count), iterator, strict=False)]
        state = iterator.get_state()
        shapes.append(shape_of(state))
        iterator.close()
    pieces += list(begin(OPTIONS[-1]))
    assert pieces == whole
    assert all(shape == shapes[0] for shape in shapes)


@both_loops
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("stages", [[], ["map", "batch"], ["async map", "filter"]])
def test_one_object_is_iterated_over_in_both_ways_in_turn(
    loop: str, is_async: bool, stages: list[str]
) -> None:
    """And on several loops: nothing is lost, nothing comes twice."""
    whole = list(pipeline(stages, OPTIONS[0], is_async=is_async))
    iterator = iter(pipeline(stages, OPTIONS[2], is_async=is_async))
    seen: list[Any] = []

    async def some(count: int) -> None:
        for _ in range(count):
            seen.append(await anext(iterator))

    run_on(loop, some(2))
    seen += [next(iterator), next(iterator)]
    run_on(loop, some(1))

    async def rest() -> None:
        seen.extend([element async for element in iterator])

    run_on(loop, rest())
    assert seen == whole
    assert list(iterator) == []


def test_iterators_of_one_dataset_are_independent() -> None:
    """Each begins at the beginning."""
    dataset = pipeline(["map"], OPTIONS[2])
    one, other = iter(dataset), iter(dataset)
    first = [next(one) for _ in range(5)]
    assert [next(other) for _ in range(5)] == first
    assert len(list(one)) == LENGTH - 5


def test_states_are_small_and_known_to_be_those_of_grain() -> None:
    """Their parts are where programs that read them look."""
    numbers = MapDataset.range(9).to_iter_dataset()
    iterator = iter(numbers.map(abs).filter(bool).batch(2))
    next(iterator)
    assert iterator.get_state() == {"next_index": 3}
    drawn = iter(numbers.random_map(lambda x, rng: x, seed=1).map_with_index(lambda i, x: x))
    next(drawn)
    parent = {"parent": {"next_index": 1}, "index_for_rng": 1}
    assert drawn.get_state() == {"parent": parent, "counter": 1}
    mixed = iter(IterDataset.mix([numbers, numbers]))
    next(mixed)
    parts = [{"next_index": 1}, {"next_index": 0}]
    assert mixed.get_state() == {"parents": parts, "index": 1, "stop": False}


@pytest.mark.parametrize("position", [-1, 10])
def test_a_position_that_does_not_exist_is_refused(position: int) -> None:
    """And the end is a position."""
    iterator = iter(MapDataset.range(9).to_iter_dataset())
    with pytest.raises(IndexError, match="9"):
        iterator.set_state({"next_index": position})
    iterator.set_state({"next_index": 9})
    assert list(iterator) == []


def test_a_state_may_be_set_after_the_end() -> None:
    """Again and again."""
    iterator = iter(pipeline([], OPTIONS[3]))
    state = iterator.get_state()
    whole = list(iterator)
    for _ in range(2):
        iterator.set_state(state)
        assert list(iterator) == whole


# Errors


def _fails_at(*bad: int) -> Any:
    def check(x: int) -> int:
        if x in bad:
            raise RuntimeError(f"no {x}")
        return x

    return check


def _check_on_loop(check: Any) -> Any:
    async def checked(x: int) -> int:
        await asyncio.sleep(0)
        return check(x)  # type: ignore[no-any-return]

    return checked


def _outcomes(iterator: Any) -> list[Any]:
    found: list[Any] = []
    while True:
        try:
            found.append(next(iterator))
        except StopIteration:
            return found
        except RuntimeError as error:
            found.append(str(error))


async def _outcomes_on_loop(iterator: Any) -> list[Any]:
    found: list[Any] = []
    while True:
        try:
            found.append(await anext(iterator))
        except StopAsyncIteration:
            return found
        except RuntimeError as error:
            found.append(str(error))


@pytest.mark.parametrize("where", ["dataset", "threads", "iteration", "coroutine", "on loop"])
@pytest.mark.parametrize("on_loop", [False, True])
def test_an_error_comes_at_its_element_and_the_next_goes_on(where: str, on_loop: bool) -> None:
    """Its position counts as delivered, wherever it was raised, and however one iterates."""
    check = _fails_at(3, 4, 8)
    numbers = MapDataset.source(list(range(9)))
    dataset = {
        "dataset": lambda: numbers.map(check).to_iter_dataset(ReadOptions(0, 0)),
        "threads": lambda: numbers.map(check).to_iter_dataset(ReadOptions(3, 5)),
        "iteration": lambda: numbers.to_iter_dataset().map(check),
        "coroutine": lambda: numbers.map(_check_on_loop(check)).to_iter_dataset(),
        "on loop": lambda: numbers.to_iter_dataset().map(_check_on_loop(check)),
    }[where]()
    expected = [0, 1, 2, "no 3", "no 4", 5, 6, 7, "no 8"]
    iterator = iter(dataset)
    run = (lambda it: asyncio.run(_outcomes_on_loop(it))) if on_loop else _outcomes
    assert run(iterator) == expected
    assert iterator.get_state() == {"next_index": 9}
    for position in range(9):
        iterator.set_state({"next_index": position})
        if isinstance(expected[position], str):
            with pytest.raises(RuntimeError, match=expected[position]):
                next(iterator)
        else:
            assert next(iterator) == expected[position]
        assert iterator.get_state() == {"next_index": position + 1}


def test_an_error_stands_for_the_batch_in_which_it_comes() -> None:
    """The next batch begins behind the element, and so does one that is restored there."""
    numbers = MapDataset.range(8).to_iter_dataset().map(_fails_at(4))
    iterator = iter(numbers.batch(3, batch_fn=tuple))
    assert next(iterator) == (0, 1, 2)
    with pytest.raises(RuntimeError, match="no 4"):
        next(iterator)
    assert iterator.get_state() == {"next_index": 5}
    assert list(iterator) == [(5, 6, 7)]


def test_an_error_in_a_mixture_names_its_dataset() -> None:
    """By its position among those that are mixed."""
    good = MapDataset.range(5).to_iter_dataset()
    iterator = iter(IterDataset.mix([good, good.map(_fails_at(0))]))
    assert next(iterator) == 0
    with pytest.raises(RuntimeError) as caught:
        next(iterator)
    assert any("datasets[1]" in note for note in caught.value.__notes__)
    assert [next(iterator), next(iterator)] == [1, 1]


def test_an_error_that_means_an_end_elsewhere_is_no_end_here() -> None:
    """A function that raises StopIteration or StopAsyncIteration has failed."""
    for kind in (StopIteration, StopAsyncIteration):

        def stop(x: int, kind: Any = kind) -> int:
            raise kind

        for dataset in (
            MapDataset.source([1, 2]).map(stop).to_iter_dataset(),
            MapDataset.source([1, 2]).map(stop).to_iter_dataset(ReadOptions(0, 0)),
            MapDataset.range(3).to_iter_dataset().map(stop),
            MapDataset.range(3).to_iter_dataset().filter(stop),
            MapDataset.range(3).to_iter_dataset().batch(2, batch_fn=stop),
        ):
            with pytest.raises(RuntimeError):
                list(dataset)


# Cancellation and interruption


@both_loops
@pytest.mark.parametrize("stages", [[], ["batch"], ["map", "batch"], ["async map", "batch"]])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_cancelled_wait_loses_nothing(loop: str, stages: list[str], is_async: bool) -> None:
    """The next call returns what the cancelled one would have, and the state does not move."""
    whole = list(pipeline(stages, OPTIONS[0], is_async=is_async))

    async def main() -> list[Any]:
        iterator = iter(pipeline(stages, OPTIONS[2], is_async=is_async))
        seen: list[Any] = []
        for turns in range(200):
            before = iterator.get_state()
            waiting = asyncio.ensure_future(anext(iterator, None))
            for _ in range(turns % 7):
                await asyncio.sleep(0)
            waiting.cancel()
            try:
                element = await waiting
            except asyncio.CancelledError:
                assert iterator.get_state() == before
                continue
            if element is None:
                break
            seen.append(element)
            if len(seen) % 3 == 0:
                seen.append(await anext(iterator, None))
        rest = [element async for element in iterator]
        return [x for x in seen if x is not None] + rest

    assert run_on(loop, main()) == whole


async def test_a_state_may_be_set_while_a_cancelled_wait_goes_on() -> None:
    """What the thread makes meanwhile is dropped."""
    opened, entered = threading.Event(), threading.Event()

    def hold(x: int) -> int:
        if x == 2:
            entered.set()
            assert opened.wait(20)
        return x

    iterator = iter(MapDataset.range(6).to_iter_dataset().map(hold))
    assert [await anext(iterator), await anext(iterator)] == [0, 1]
    waiting = asyncio.ensure_future(anext(iterator))
    await until(entered.is_set)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert iterator.get_state() == {"next_index": 2}
    iterator.set_state({"next_index": 4})
    assert iterator.get_state() == {"next_index": 4}
    opened.set()
    assert [x async for x in iterator] == [4, 5]


# Own iterators


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
        "plain over async": lambda: _Every(numbers.map(_plus_one), 2),
        "async": lambda: _Awaited(numbers),
        "async over async": lambda: _Awaited(numbers.map(_plus_one)),
        "generated": lambda: _Generated(numbers).map(lambda x: x),
        "in the middle": lambda: _Awaited(_Every(numbers, 2).map(_plus_one)).map(lambda x: 10 * x),
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


# The end


@pytest.mark.parametrize("stages", [[], ["map"], ["async map", "map"], ["mix"]])
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_closed_iterator_says_so(stages: list[str], is_async: bool) -> None:
    """Its position can still be asked for; closing again does nothing."""
    for on_loop in (True, False):
        iterator = iter(pipeline(stages, OPTIONS[2], is_async=is_async))
        if on_loop:
            await anext(iterator)
            await iterator.aclose()
            await iterator.aclose()
        else:
            await asyncio.to_thread(next, iterator)
            iterator.close()
            iterator.close()
        with pytest.raises(ValueError, match="closed"):
            next(iterator)
        with pytest.raises(ValueError, match="closed"):
            await anext(iterator)
        json.dumps(iterator.get_state())


async def test_iterators_are_context_managers_of_both_kinds() -> None:
    """Which close them."""
    with iter(pipeline([], OPTIONS[2])) as iterator:
        next(iterator)
    async with aiter(pipeline(["async map"], OPTIONS[2])) as other:
        await anext(other)
    for closed in (iterator, other):
        with pytest.raises(ValueError, match="closed"):
            next(closed)


@both_loops
@pytest.mark.parametrize("stages", [[], ["map"], ["async map", "map"], ["async filter", "mix"]])
@pytest.mark.parametrize("is_async", [False, True])
def test_breaking_out_leaves_nothing_behind(loop: str, stages: list[str], is_async: bool) -> None:
    """Nor does an iterator that was never used, or an error in the loop's body."""
    dataset = pipeline(stages, OPTIONS[3], is_async=is_async)

    async def broken() -> None:
        for _ in range(2):
            async for _ in dataset:
                break

    with no_leaks():
        run_on(loop, broken())
        for _ in dataset:
            break
        iter(dataset)
        with pytest.raises(ZeroDivisionError):
            for _ in dataset:
                raise ZeroDivisionError


async def test_tasks_end_with_an_iterator_that_is_dropped() -> None:
    """While the loop goes on."""
    before = asyncio.all_tasks()
    async for _ in pipeline(["async map"], OPTIONS[3], is_async=True):
        break
    await until(lambda: gc.collect() is not None and asyncio.all_tasks() == before)


@pytest.mark.parametrize("kind", ["thread", "hop", "plain"])
def test_a_transform_that_is_stuck_does_not_keep_close_waiting(kind: str) -> None:
    """`close` returns while it is, and nothing of it stays once it returns."""
    opened, entered = threading.Event(), threading.Event()

    def hold(x: int) -> int:
        entered.set()
        assert opened.wait(30)
        return x

    numbers = MapDataset.source([0, 1, 2])
    options = ReadOptions(2, 2) if kind == "thread" else ReadOptions(0, 0)
    iterator = iter(numbers.map(hold).to_iter_dataset(options))

    async def main() -> None:
        waiting = asyncio.ensure_future(anext(iterator))
        await until(entered.is_set)
        waiting.cancel()
        await asyncio.wait([waiting])
        await iterator.aclose()

    if kind == "plain":
        iterator.close()
    else:
        asyncio.run(main())
    assert not opened.is_set()
    opened.set()
