"""Loading: one load for each row, whoever waits, is cancelled or fails."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from providers import CONFIG, AsyncProvider, Provider, number
from support import both_loops, run_on, until

from aioloader import DataCache

KINDS = pytest.mark.parametrize("kind", [Provider, AsyncProvider])


async def turns(count: int = 20) -> None:
    """Let everything happen that can happen now."""
    for _ in range(count):
        await asyncio.sleep(0)


@KINDS
async def test_a_row_is_loaded_once_however_many_wait(kind: Any) -> None:
    """And each gets a value of its own; on the loop, or off it."""
    provider = kind()
    door = provider.shut_row(3)
    cache = DataCache(CONFIG, provider)
    waiting = [asyncio.create_task(cache.get_or_load(3)) for _ in range(50)]
    await until(lambda: provider.asked)
    await turns()
    assert cache.statistics().waiting == 50
    door.set()
    rows = await asyncio.gather(*waiting)
    assert [number(row) for row in rows] == [3] * 50
    assert len({id(row) for row in rows}) == 50
    assert provider.asked == [3]
    here = {threading.get_ident()}
    assert provider.threads == here if kind is AsyncProvider else not provider.threads & here
    now = cache.statistics()
    assert (now.misses, now.inserts, now.waiting, now.loading) == (50, 1, 0, 0)


@KINDS
async def test_threads_and_tasks_wait_for_the_same_load(kind: Any) -> None:
    """Whichever of them came first."""
    provider = kind()
    for index, first in ((1, "thread"), (2, "task")):
        door = provider.shut_row(index)
        async with DataCache(CONFIG, provider) as cache:
            with ThreadPoolExecutor(4) as pool:
                starts: list[Any] = [
                    lambda cache=cache, index=index, pool=pool: [
                        asyncio.wrap_future(pool.submit(cache.__getitem__, index)) for _ in range(4)
                    ],
                    lambda cache=cache, index=index: [
                        asyncio.create_task(cache.get_or_load(index)) for _ in range(4)
                    ],
                ]
                begin, join = starts if first == "thread" else reversed(starts)
                waiting = begin()
                await until(lambda index=index: index in provider.asked)
                waiting += join()
                await until(lambda cache=cache: cache.statistics().misses == 8)
                door.set()
                assert [number(row) for row in await asyncio.gather(*waiting)] == [index] * 8
    assert provider.asked == [1, 2]


@both_loops
def test_loops_share_what_they_load(loop: str) -> None:
    """A coroutine runs on the loop that asked first, and those on another one wait for it."""
    provider = AsyncProvider()
    door = provider.shut_row(1)
    cache = DataCache(CONFIG, provider)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run_on, loop, cache.get_or_load(1)) for _ in range(2)]
        run_on(loop, until(lambda: cache.statistics().waiting == 2))
        door.set()
        assert [number(run.result()) for run in runs] == [1, 1]
    assert provider.asked == [1]


@both_loops
def test_a_loop_that_ends_leaves_the_load_to_those_who_still_wait(loop: str) -> None:
    """They start it anew, on their own."""
    provider = AsyncProvider()
    door = provider.shut_row(1)
    cache = DataCache(CONFIG, provider)

    async def begin() -> None:
        asyncio.create_task(cache.get_or_load(1))  # noqa: RUF006
        await until(lambda: cache.statistics().waiting == 2)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run_on, loop, begin())
        run_on(loop, until(lambda: provider.asked))
        second = pool.submit(run_on, loop, cache.get_or_load(1))
        first.result()
        run_on(loop, until(lambda: provider.asked == [1, 1]))
        door.set()
        assert number(second.result()) == 1
    assert provider.cancelled == [1]


@KINDS
async def test_a_waiter_that_is_cancelled_is_alone(kind: Any) -> None:
    """The first or the last; the others get their row."""
    provider = kind()
    door = provider.shut_row(3)
    cache = DataCache(CONFIG, provider)
    waiting = [asyncio.create_task(cache.get_or_load(3)) for _ in range(3)]
    await until(lambda: provider.asked)
    for task in (waiting[0], waiting[2]):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert cache.statistics().waiting == 1
    door.set()
    assert number(await waiting[1]) == 3
    assert provider.asked == [3]


async def test_a_load_ends_with_its_last_waiter() -> None:
    """Its coroutine is cancelled, nothing is kept, and the next one starts anew."""
    provider = AsyncProvider()
    door = provider.shut_row(3)
    cache = DataCache(CONFIG, provider)
    waiting = [asyncio.create_task(cache.get_or_load(3)) for _ in range(3)]
    await until(lambda: provider.asked)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    again = asyncio.create_task(cache.get_or_load(3))
    await until(lambda: provider.cancelled == [3])
    door.set()
    assert number(await again) == 3
    assert provider.asked == [3, 3]
    now = cache.statistics()
    assert (now.failures, now.inserts, now.loading, now.waiting) == (0, 1, 0, 0)


async def test_a_thread_that_has_begun_goes_on_and_its_row_is_kept() -> None:
    """It cannot be stopped, so that whoever asks meanwhile waits for it."""
    provider = Provider()
    door = provider.shut_row(3)
    cache = DataCache(CONFIG, provider)
    task = asyncio.create_task(cache.get_or_load(3))
    await until(lambda: provider.asked)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    again = asyncio.create_task(cache.get_or_load(3))
    await turns()
    door.set()
    assert number(await again) == 3
    assert provider.asked == [3]


@KINDS
async def test_an_error_comes_to_all_who_wait_and_is_not_kept(kind: Any) -> None:
    """The next one tries again."""
    provider = kind()
    door = provider.shut_row(3)
    provider.failing[3] = OSError("unreadable")
    cache = DataCache(CONFIG, provider)
    waiting = [asyncio.create_task(cache.get_or_load(3)) for _ in range(4)]
    await until(lambda: provider.asked)
    await turns()
    door.set()
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(error) for error in errors] == ["unreadable"] * 4
    assert cache.statistics().failures == 1
    del provider.failing[3]
    assert number(await cache.get_or_load(3)) == 3
    assert provider.asked == [3, 3]


@KINDS
@pytest.mark.parametrize(
    ("raised", "arrives"),
    [
        (StopIteration(1), (StopIteration, RuntimeError)),
        (StopAsyncIteration(1), (StopAsyncIteration, RuntimeError)),
        (asyncio.CancelledError(), (RuntimeError, asyncio.CancelledError)),
        (GeneratorExit(), GeneratorExit),
    ],
)
async def test_no_exception_is_too_odd_to_arrive(kind: Any, raised: Any, arrives: Any) -> None:
    """Not those that loops and generators take for something else."""
    provider = kind()
    provider.failing[1] = raised
    cache = DataCache(CONFIG, provider)
    with pytest.raises(arrives):
        await cache.get_or_load(1)
    now = cache.statistics()
    assert (now.failures, now.loading, now.waiting) == (1, 0, 0)


def test_ctrl_c_in_one_thread_is_not_the_others() -> None:
    """They load the row themselves."""

    class Interrupted(Provider):
        def end(self, index: int) -> Any:
            row = super().end(index)
            if len(self.asked) == 1:
                raise KeyboardInterrupt
            return row

    provider = Interrupted()
    door = provider.shut_row(3)
    cache = DataCache(CONFIG, provider)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.__getitem__, 3)
        run_on("asyncio", until(lambda: provider.asked))
        second = pool.submit(cache.__getitem__, 3)
        run_on("asyncio", until(lambda: cache.statistics().waiting == 2))
        door.set()
        with pytest.raises(KeyboardInterrupt):
            first.result()
        assert number(second.result()) == 3
    assert provider.asked == [3, 3]


async def test_a_blocked_loop_does_not_wait_for_itself() -> None:
    """A row that a task has asked for, and that then is asked for without `await`."""
    provider = Provider()
    cache = DataCache(CONFIG, provider)
    task = asyncio.create_task(cache.get_or_load(3))
    await asyncio.sleep(0)
    assert number(cache[3]) == 3
    assert number(await task) == 3
    assert provider.asked == [3]


async def test_a_coroutine_on_the_running_loop_has_to_be_awaited() -> None:
    """To block the loop for it would be for ever; what is kept is returned."""
    cache = DataCache(CONFIG, AsyncProvider())
    with pytest.raises(RuntimeError, match=r"await cache\.get_or_load"):
        cache[1]
    await cache.get_or_load(1)
    assert number(cache[1]) == 1


def test_a_coroutine_is_run_where_there_is_no_loop() -> None:
    """By a thread of a program without one."""
    cache = DataCache(CONFIG, AsyncProvider(5))
    assert [number(cache[index]) for index in (0, 1, 0)] == [0, 1, 0]


@KINDS
async def test_a_row_that_asks_for_itself_is_refused(kind: Any) -> None:
    """It would wait for ever; others it may ask for."""

    class Circular:
        def __len__(self) -> int:
            return 3

        def resolve_data(self, index: int) -> Any:
            return [index, cache[index and 0]] if index else cache[0]

    class AsyncCircular(Circular):
        async def resolve_data(self, index: int) -> Any:
            other = await cache.get_or_load(1 - index) if index < 2 else 0
            return [index, other]

    cache = DataCache(CONFIG, Circular() if kind is Provider else AsyncCircular())
    with pytest.raises(RuntimeError, match="would wait for itself"):
        await cache.get_or_load(0)
    assert cache.statistics().loading == 0


async def test_large_values_are_copied_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """And little ones on it, where a thread would cost more."""
    from aioloader._caches import loading

    copied: dict[int, int] = {}
    keep = loading.keep

    def watched(value: Any) -> Any:
        copied[number(value)] = threading.get_ident()
        return keep(value)

    monkeypatch.setattr(loading, "keep", watched)
    await DataCache(CONFIG, AsyncProvider(nbytes=800)).get_or_load(1)
    await DataCache(CONFIG, AsyncProvider(nbytes=8_000_000)).get_or_load(2)
    assert copied[1] == threading.get_ident() != copied[2]
