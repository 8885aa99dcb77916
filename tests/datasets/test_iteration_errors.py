"""Errors and cancellation: what they cost, and where iteration goes on."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from typing import Any

import pytest
from pipelines import OPTIONS, STAGES, pipeline
from support import both_loops, run_on, until

from aioloader import IterDataset, MapDataset, ReadOptions
from aioloader._datasets import driving


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
    bad = MapDataset.range(10, 15).to_iter_dataset().map(_fails_at(10))
    iterator = iter(IterDataset.mix([good, bad]))
    assert next(iterator) == 0
    with pytest.raises(RuntimeError) as caught:
        next(iterator)
    assert any("datasets[1]" in note for note in caught.value.__notes__)
    assert [next(iterator), next(iterator)] == [1, 11]


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


@pytest.mark.parametrize("stages", [["batch"], ["map", "batch"], ["async map", "batch"]])
def test_an_interrupted_wait_loses_nothing(stages: list[str]) -> None:
    """Ctrl-C in the middle of a batch: the state is that before it, and the next call gets it."""
    opened = threading.Event()
    entered = threading.Event()

    def hold(x: int) -> int:
        if x == 8:
            entered.set()
            assert opened.wait(30)
        return x

    dataset = MapDataset.source(list(range(12))).map(hold).to_iter_dataset(ReadOptions(2, 4))
    for stage in stages:
        dataset = STAGES[stage](dataset)
    iterator = iter(dataset)
    first = [next(iterator), next(iterator)]
    before = iterator.get_state()

    program = threading.get_ident()

    def interrupt() -> None:
        assert entered.wait(30)
        while sys._current_frames()[program].f_code.co_name != "block":
            pass
        signal.pthread_kill(program, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        interrupting.start()
        next(iterator)
    interrupting.join()
    assert iterator.get_state() == before
    opened.set()
    added = 3 * len([stage for stage in stages if "map" in stage])
    sums = [sum(range(k, k + 3)) + added for k in (0, 3, 6, 9)]
    assert first + list(iterator) == sums


async def test_an_element_does_not_wait_for_a_slow_one_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was made is delivered while the thread makes the next."""
    monkeypatch.setattr(driving, "_TURN_SECONDS", 60.0)
    waited_for, opened = threading.Event(), threading.Event()

    def hold(x: int) -> int:
        if x < 2:
            assert (opened if x else waited_for).wait(40)
        return x

    iterator = iter(MapDataset.range(3).to_iter_dataset().map(hold))
    first = asyncio.ensure_future(anext(iterator))
    for _ in range(5):
        await asyncio.sleep(0)
    waited_for.set()
    assert await first == 0
    assert iterator.get_state() == {"next_index": 1}
    assert not opened.is_set()
    opened.set()
    assert [x async for x in iterator] == [1, 2]
