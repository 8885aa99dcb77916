"""The end of an iterator: closed, dropped, left, or stuck."""

from __future__ import annotations

import asyncio
import gc
import json
import threading

import pytest
from pipelines import OPTIONS, pipeline
from support import both_loops, run_on, until

from aioloader import MapDataset, ReadOptions
from aioloader.testing import no_leaks


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
