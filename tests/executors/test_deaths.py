"""Deaths: a worker that ends, however and whenever, costs a second run of its rows and no more."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from deadly import AlwaysDies, DiesOnce, DiesOnceSent, first_time
from executor_bench import ROWS, bench
from support import is_alive, until

from aioloader.errors import ItemError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ON_LOOPS = ["asyncio"]  # but for what is marked otherwise
on_both_loops = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


def exits() -> None:
    os._exit(7)


def exits_cleanly() -> None:
    os._exit(0)


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crashes() -> None:
    ctypes.string_at(0)


WAYS: dict[str, tuple[Callable[[], None], str]] = {
    "os._exit(7)": (exits, "exited with code 7"),
    "os._exit(0)": (exits_cleanly, "exited with code 0"),
    "SIGKILL": (is_killed, "killed by SIGKILL.*want of memory"),
    "SIGSEGV": (crashes, "killed by SIGSEGV"),
}

all_ways = pytest.mark.parametrize("way", list(WAYS))


# Once, at any moment ------------------------------------------------------------------------------


@all_ways
@pytest.mark.parametrize("row", [0, 3, 7])
async def test_the_rows_of_a_worker_that_dies_are_run_again(
    way: str, row: int, tmp_path: Path
) -> None:
    """Nothing is lost and nothing is there twice: bytes, columns and retries are as ever."""
    die, flag = WAYS[way][0], str(tmp_path / "died")

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, int]:
        if item == row and first_time(flag):
            arrays["x"][...] = 666
            die()
        arrays["x"][...] = item
        return {"item": item}

    async with bench(load) as b:
        result = await b.fill(range(ROWS))
        assert (result.x, result.retries) == (list(range(ROWS)), 0)
        assert list(result.extras["item"]) == list(range(ROWS))
        assert b.executor.worker_deaths == 1
        assert (await b.fill(range(ROWS))).x == list(range(ROWS))


async def test_a_worker_may_die_of_unpickling_its_items(tmp_path: Path) -> None:
    """Before any row was begun: its rows are then tried one by one."""

    def load(item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = item

    flag = str(tmp_path / "died")
    items = [*range(5), DiesOnce(flag, 5), 6, 7]
    async with bench(load, num_workers=1) as b:
        assert (await b.fill(items)).x == list(range(ROWS))
        assert b.executor.worker_deaths == 1


async def test_a_worker_may_die_of_pickling_its_results(tmp_path: Path) -> None:
    """After all rows were done: they are done again."""
    flag = str(tmp_path / "died")

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
        arrays["x"][...] = item
        return {"r": DiesOnceSent(flag, item)}

    async with bench(load, num_workers=1) as b:
        result = await b.fill(range(ROWS))
        assert (result.x, list(result.extras["r"])) == (list(range(ROWS)), list(range(ROWS)))
        assert b.executor.worker_deaths == 1


async def test_a_worker_may_die_in_a_vectorised_load(tmp_path: Path) -> None:
    flag = str(tmp_path / "died")

    def load(items: Any, arrays: Any, seeds: Any) -> None:
        if 5 in items and first_time(flag):
            os._exit(1)
        arrays["x"][...] = items

    async with bench(load, vectorized=True) as b:
        assert (await b.fill(range(ROWS))).x == list(range(ROWS))


async def test_a_worker_may_die_while_it_starts(tmp_path: Path) -> None:
    flag = str(tmp_path / "died")

    def startup() -> None:
        if first_time(flag):
            os._exit(1)

    def load(item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = item

    async with bench(load, startup=startup) as b:
        assert (await b.fill(range(ROWS))).x == list(range(ROWS))


def plain(item: int, arrays: Any, seed: int | None) -> None:
    arrays["x"][...] = item


@on_both_loops
@pytest.mark.parametrize("num_workers", [1, 4])
async def test_all_workers_may_be_killed_at_once_while_they_are_idle(num_workers: int) -> None:
    """As the system does for want of memory. It is nobody's fault and no reason to give up."""
    async with bench(plain, num_workers=num_workers) as b:
        for _ in range(2):
            assert (await b.fill(range(ROWS))).x == list(range(ROWS))
            await until(lambda: len(b.executor.worker_pids) == num_workers)
            pids = b.executor.worker_pids
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            await until(lambda: not any(map(is_alive, pids)))  # noqa: B023
            with anyio.fail_after(10):
                assert (await b.fill(range(ROWS))).x == list(range(ROWS))
            assert not set(pids) & set(b.executor.worker_pids)


@on_both_loops
async def test_deaths_every_few_items_lose_nothing(tmp_path: Path) -> None:
    """One death breaks no pool for good, and a hundred items are a hundred items."""
    folder = str(tmp_path)

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, int]:
        if item % 40 == 13 and first_time(f"{folder}/{item}"):
            is_killed()
        arrays["x"][...] = item
        return {"item": item}

    async with bench(load, depth=3) as b:
        starts = range(0, 400, ROWS)
        results = await asyncio.gather(*(b.fill(range(n, n + ROWS)) for n in starts))
        assert [x for result in results for x in result.x] == list(range(400))
        assert [i for result in results for i in result.extras["item"]] == list(range(400))
        assert 5 <= b.executor.worker_deaths <= 10  # some die side by side


@on_both_loops
async def test_the_next_batch_comes_soon_after_a_death() -> None:
    async with bench(plain) as b:
        await b.fill(range(ROWS))
        os.kill(b.executor.worker_pids[0], signal.SIGKILL)
        started = time.monotonic()
        await b.fill(range(ROWS))
        assert time.monotonic() - started < 2


@on_both_loops
async def test_nobody_writes_to_a_slot_any_more_when_it_is_filled_again(tmp_path: Path) -> None:
    """The rows of a worker that lived on beside the dead one are its rows no longer."""
    folder = str(tmp_path)

    def load(item: int, arrays: Any, seed: int | None) -> None:
        if item == 0 and first_time(f"{folder}/dies"):
            while not os.path.exists(f"{folder}/writes"):
                time.sleep(0.001)
            os._exit(1)
        if item == 7 and first_time(f"{folder}/writes"):
            end = time.monotonic() + 30
            while time.monotonic() < end:
                arrays["x"][...] = 666
        arrays["x"][...] = item

    async with bench(load) as b:
        for _ in range(3):
            assert (await b.fill(range(ROWS))).x == list(range(ROWS))


# Again and again ----------------------------------------------------------------------------------


@all_ways
async def test_an_item_that_always_kills_is_named_with_how(way: str) -> None:
    """After some tries; and other items are not blamed."""
    die, message = WAYS[way]

    def load(item: int, arrays: Any, seed: int | None) -> None:
        if item == 5:
            die()
        arrays["x"][...] = item

    async with bench(load) as b:
        with pytest.raises(ItemError, match=message) as caught:
            await b.fill(range(ROWS))
        assert (caught.value.row, caught.value.died) == (5, True)
        assert (await b.fill(range(5))).x[:5] == list(range(5))


@on_both_loops
async def test_fills_beside_an_item_that_always_kills_are_filled() -> None:
    def load(item: int, arrays: Any, seed: int | None) -> None:
        if item == 13:
            os._exit(1)
        arrays["x"][...] = item

    async with bench(load) as b:
        fills = [b.fill(range(n, n + ROWS)) for n in range(0, 5 * ROWS, ROWS)]
        results = await asyncio.gather(*fills, return_exceptions=True)
    error = results.pop(1)
    assert isinstance(error, ItemError)
    assert (error.row, error.died) == (13 - ROWS, True)
    for start, result in zip([0, 16, 24, 32], results, strict=True):
        assert not isinstance(result, BaseException)
        assert result.x == list(range(start, start + ROWS))


async def test_an_item_that_kills_on_arrival_is_named() -> None:
    """It ends whoever unpickles it, so that nobody ever got to its row."""
    items: list[Any] = list(range(ROWS))
    items[6] = AlwaysDies()
    async with bench(plain) as b:
        with pytest.raises(ItemError, match="exited with code 9") as caught:
            await b.fill(items)
        assert (caught.value.row, caught.value.died) == (6, True)


async def test_an_item_that_kills_a_vectorised_load_is_named() -> None:
    """Its neighbours in the chunk are found innocent one by one."""

    def load(items: Any, arrays: Any, seeds: Any) -> None:
        if 5 in items:
            os._exit(1)
        arrays["x"][...] = items

    async with bench(load, vectorized=True, num_workers=1) as b:
        with pytest.raises(ItemError) as caught:
            await b.fill(range(ROWS))
        assert (caught.value.row, caught.value.died) == (5, True)


@on_both_loops
async def test_a_startup_that_always_kills_is_given_up() -> None:
    """And said to be what it is, by every fill; leaving works as ever."""

    def startup() -> None:
        os._exit(4)

    async with bench(plain, startup=startup) as b:
        for _ in range(2):
            with pytest.raises(
                ItemError, match=r"workers end before.*exited with code 4"
            ) as caught:
                await b.fill(range(ROWS))
            assert caught.value.died
            await asyncio.sleep(0.01)


async def test_workers_that_cannot_start_beside_one_that_can_do_not_go_on_for_ever(
    tmp_path: Path,
) -> None:
    """There may be room for one of them only. The items are loaded, or it is said why not."""
    lock = str(tmp_path / "lock")

    def startup() -> None:
        import builtins
        import fcntl

        builtins.held_by_this_test = open(lock, "w")  # type: ignore[attr-defined]  # noqa: SIM115
        try:
            fcntl.flock(builtins.held_by_this_test, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[attr-defined]
        except OSError:
            os._exit(1)

    def load(item: int, arrays: Any, seed: int | None) -> None:
        time.sleep(0.05)
        arrays["x"][...] = item

    async with bench(load, startup=startup) as b:
        with anyio.fail_after(8):
            try:
                assert (await b.fill(range(ROWS))).x == list(range(ROWS))
            except ItemError as error:
                assert "exited with code 1" in str(error)


# Hanging ------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_stopped_worker_is_replaced(tmp_path: Path) -> None:
    """It does not move at all: only its time limit tells."""
    flag = str(tmp_path / "stopped")

    def load(item: int, arrays: Any, seed: int | None) -> None:
        if item == 3 and first_time(flag):
            os.kill(os.getpid(), signal.SIGSTOP)
        arrays["x"][...] = item

    async with bench(load, item_timeout=0.2) as b:
        with pytest.raises(ItemError, match=r"item_timeout=0\.2 s") as caught:
            await b.fill(range(ROWS))
        assert caught.value.row == 3
        assert (await b.fill(range(ROWS))).x == list(range(ROWS))


async def test_a_worker_that_holds_its_interpreter_is_replaced(tmp_path: Path) -> None:
    """No thread of its own could have told it to stop."""
    flag = str(tmp_path / "stuck")

    def load(item: int, arrays: Any, seed: int | None) -> None:
        if item == 3 and first_time(flag):
            ctypes.PyDLL(None).sleep(30)
        arrays["x"][...] = item

    async with bench(load, item_timeout=0.2) as b:
        with pytest.raises(ItemError, match=r"item_timeout=0\.2 s") as caught:
            await b.fill(range(ROWS))
        assert caught.value.row == 3
        assert (await b.fill(range(ROWS))).x == list(range(ROWS))


async def test_a_vectorised_chunk_that_hangs_is_ended(tmp_path: Path) -> None:
    def load(items: Any, arrays: Any, seeds: Any) -> None:
        if 5 in items:
            time.sleep(30)
        arrays["x"][...] = items

    async with bench(load, vectorized=True, item_timeout=0.2) as b:
        with pytest.raises(ItemError, match=r"item_timeout=0\.2 s"):
            await b.fill(range(ROWS))
        assert (await b.fill(range(5))).x[:5] == list(range(5))


async def test_starting_slowly_is_not_hanging() -> None:
    """The limit is for items; a startup takes the time that it takes."""

    def startup() -> None:
        time.sleep(0.5)

    async with bench(plain, startup=startup, item_timeout=0.1) as b:
        assert (await b.fill(range(ROWS))).x == list(range(ROWS))
        assert b.executor.worker_deaths == 0


# The end ------------------------------------------------------------------------------------------


class Stuck:
    """A load in which every worker stays for as long as a test would bear."""

    def __init__(self, folder: Path, how: str) -> None:
        self.folder = str(folder)
        self.how = how

    def __call__(self, item: int, arrays: Any, seed: int | None) -> None:
        open(f"{self.folder}/{os.getpid()}", "x").close()
        if self.how == "asleep":
            time.sleep(5)
        elif self.how == "in C":
            ctypes.PyDLL(None).sleep(5)
        elif self.how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.how == "ignoring signals":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(5)
        else:
            while True:
                arrays["x"][...] += 1


@pytest.mark.parametrize("how", ["asleep", "in C", "stopped", "ignoring signals", "computing"])
async def test_leaving_takes_no_longer_than_a_moment_whatever_workers_do(
    how: str, tmp_path: Path
) -> None:
    async with bench(Stuck(tmp_path, how)) as b:
        filling = asyncio.ensure_future(b.fill(range(ROWS)))
        await until(lambda: len(list(tmp_path.iterdir())) == 2)
        pids = b.executor.worker_pids
        filling.cancel()
        await asyncio.wait([filling])
        started = time.monotonic()
    assert time.monotonic() - started < 1.5
    assert not any(map(is_alive, pids))


@on_both_loops
async def test_an_executor_may_be_left_while_it_replaces_workers() -> None:
    async with bench(plain) as b:
        for _ in range(5):
            await b.fill(range(ROWS))
        await until(lambda: len(b.executor.worker_pids) == 2)
        pids = b.executor.worker_pids
        os.kill(pids[0], signal.SIGKILL)
        while "replacing" not in repr(b.executor):
            await asyncio.sleep(0)
        started = time.monotonic()
    assert time.monotonic() - started < 1.5
    assert not any(map(is_alive, pids))


@on_both_loops
async def test_an_executor_may_be_left_while_its_workers_start() -> None:
    async with bench(plain) as b:
        filling = asyncio.ensure_future(b.fill(range(ROWS)))
        await asyncio.sleep(0)
        filling.cancel()
        await asyncio.wait([filling])
    assert b.executor.worker_pids == []


@on_both_loops
async def test_leaving_is_not_undone_by_a_cancellation(tmp_path: Path) -> None:
    """Even one that comes while the workers are being ended."""

    async def run() -> None:
        async with bench(Stuck(tmp_path, "asleep")) as b:
            pids.append(b.executor)
            await b.fill(range(ROWS))

    pids: list[Any] = []
    running = asyncio.ensure_future(run())
    await until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = pids[0].worker_pids
    running.cancel()
    for _ in range(20):
        await asyncio.sleep(0.005)
        running.cancel()
    await asyncio.wait([running])
    await until(lambda: not any(map(is_alive, workers)))


# All of it ----------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_is_killed_and_cancelled_fills_are_right_or_say_why(seed: int) -> None:
    """Workers and the server are killed, fills cancelled, items fail, at random moments."""

    def load(item: Any, arrays: Any, _: int | None) -> dict[str, object]:
        number, fails, payload = item
        if fails:
            raise ValueError(number)
        arrays["x"][...] = number
        return {"number": number, "size": len(payload)}

    draw = random.Random(seed)

    async def fill(b: Any, start: int) -> None:
        size, fails = draw.choice([0, 10_000, 400_000]), draw.random() < 0.2
        items = [(start + n, fails and n == 5, bytes(size)) for n in range(ROWS)]
        if fails:
            with pytest.raises(ItemError, match=f"ValueError: {start + 5}"):
                await b.fill(items)
            return
        result = await b.fill(items)
        assert result.x == list(range(start, start + ROWS))
        assert list(result.extras["number"]) == result.x
        assert list(result.extras["size"]) == [size] * ROWS

    for _ in range(4):
        async with bench(load, num_workers=draw.choice([1, 2, 3])) as b:
            fills = [asyncio.ensure_future(fill(b, n)) for n in range(0, 30 * ROWS, ROWS)]
            for _ in range(2):
                await asyncio.sleep(draw.random() * 0.03)
                draw.choice(fills).cancel()
                if pids := b.executor.worker_pids:
                    with contextlib.suppress(ProcessLookupError):  # it died by itself
                        os.kill(draw.choice(pids), signal.SIGKILL)
            with anyio.fail_after(20):
                await asyncio.wait(fills)
        for task in fills:
            if not task.cancelled():
                task.result()
