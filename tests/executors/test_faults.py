"""Faults on order: they strike where, when and in whom they are told to."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from executor_bench import ROWS, all_kinds, bench

from aioloader._faults import POINTS, Fault, InjectedFault, Trigger, armed, faults
from aioloader.errors import ItemError

if TYPE_CHECKING:
    from collections.abc import Callable

ON_LOOPS = ["asyncio"]

IN_WORKERS = sorted(POINTS.keys() - {"fetch", "cache_write", "rebuild", "shutdown"})


def plain(item: int, arrays: Any, seed: int | None) -> dict[str, int]:
    arrays["x"][...] = item
    return {"item": item}


async def fills(b: Any, count: int = 4) -> None:
    for n in range(count):
        items = range(n * ROWS, (n + 1) * ROWS)
        result = await b.fill(items)
        assert (result.x, list(result.extras["item"])) == (list(items), list(items))


@pytest.mark.parametrize("action", ["kill", "exit"])
@pytest.mark.parametrize("point", IN_WORKERS)
@pytest.mark.parametrize("num_workers", [1, 2])
async def test_a_worker_may_end_at_any_point(point: str, action: Any, num_workers: int) -> None:
    """Its rows are run again, each is there once, and its successor is not struck."""
    with faults(Fault(point, action, worker=0)):
        async with bench(plain, num_workers=num_workers) as b:
            while b.executor.worker_deaths == 0:  # the other worker may be quicker for a while
                await fills(b)
            await fills(b)
            assert b.executor.worker_deaths == 1


async def test_a_successor_may_end_too() -> None:
    """At the same point, or while it takes its predecessor's place."""
    with faults(Fault("mid_row", "kill", lives=2), Fault("rebuild", "kill", generation=2)):
        async with bench(plain, num_workers=1) as b:
            await fills(b)
            assert b.executor.worker_deaths == 3


@pytest.mark.parametrize("point", ["attach", "start", "idle", "acknowledging", "acknowledged"])
async def test_a_stopped_worker_counts_as_hung(point: str) -> None:
    """It is ended and replaced; where it was at no row, nothing is said to have failed."""
    with faults(Fault(point, "stop")):
        async with bench(plain, num_workers=1, item_timeout=0.3) as b:
            if point in ("acknowledging",):
                with pytest.raises(ItemError, match="item_timeout"):
                    await b.fill(range(ROWS))
            await fills(b)
            assert b.executor.worker_deaths == 1


async def test_an_idle_worker_that_no_longer_answers_counts_as_hung() -> None:
    with faults(Fault("idle", "hang", visit=1)):
        async with bench(plain, num_workers=1, item_timeout=0.3) as b:
            await fills(b, 2)
            assert b.executor.worker_deaths == 1


async def test_idle_workers_are_left_alone_while_nothing_waits() -> None:
    """However long the loader's consumer takes."""
    async with bench(plain, num_workers=2, item_timeout=0.1) as b:
        await fills(b, 1)
        await anyio.sleep(0.5)  # several times the limit
        await fills(b, 1)
        assert b.executor.worker_deaths == 0


@all_kinds
async def test_a_row_may_fail_half_way_and_be_tried_again(kind: str) -> None:
    """What the first try has left in the row does not stay."""
    with faults(Fault("mid_row", "raise", visit=3)):
        async with bench(plain, kind, num_workers=1, retries=1) as b:
            result = await b.fill(range(ROWS))
            assert (result.x, result.retries) == (list(range(ROWS)), 1)


@all_kinds
async def test_what_a_fault_raises_is_reported_as_an_items_own(kind: str) -> None:
    with faults(Fault("written", "raise", visit=2)):
        async with bench(plain, kind, num_workers=1) as b:
            with pytest.raises(ItemError, match=r"InjectedFault: injected at 'written'") as caught:
                await b.fill(range(ROWS))
            assert caught.value.row == 2
            assert isinstance(caught.value.__cause__, InjectedFault)


@all_kinds
async def test_a_row_may_be_slow_or_hang(kind: str) -> None:
    slow = Fault("mid_row", "slow", visit=1, seconds=0.05)
    hang = Fault("mid_row", "hang", visit=ROWS + 1)
    if kind == "threads":  # nothing ends a thread, and it is to be gone when the test ends
        hang = Fault("mid_row", "slow", visit=ROWS + 1, seconds=1.0)
    with faults(slow, hang):
        async with bench(plain, kind, num_workers=1, item_timeout=0.4) as b:
            assert (await b.fill(range(ROWS))).x == list(range(ROWS))
            with pytest.raises(ItemError, match=r"item_timeout=0\.4 s") as caught:
                await b.fill(range(ROWS))
            assert caught.value.row == 1
            assert (await b.fill(range(ROWS))).x == list(range(ROWS))


# What a fault is ----------------------------------------------------------------------------------


def test_faults_are_armed_inside_the_block_and_by_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIOLOADER_FAULTS", "idle=stop:visit=2, fetch=slow:seconds=0.5")
    outside = (Fault("idle", "stop", visit=2), Fault("fetch", "slow", seconds=0.5))
    assert armed() == outside
    with faults(Fault("written", "kill")):
        assert armed() == (Fault("written", "kill"), *outside)
    assert armed() == outside


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fault("nowhere", "kill"), "point='nowhere': the points are attach"),
        (lambda: Fault("idle", "explode"), "action='explode': one of kill"),  # type: ignore[arg-type]
        (lambda: Fault.parse("idle=kill:how=1"), "'how=1' in 'idle=kill:how=1'"),
    ],
)
def test_a_fault_that_does_not_exist_is_refused(make: Callable[[], Fault], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_fault_is_for_one_worker_and_for_some_generations() -> None:
    fault = Fault("idle", "raise", worker=1, generation=2, lives=2)
    struck = []
    for worker in range(2):
        for generation in range(5):
            try:
                Trigger((fault,), worker, generation).visit("idle")
            except InjectedFault:
                struck.append((worker, generation))
    assert struck == [(1, 2), (1, 3)]
    assert not Fault("rebuild", "kill").strikes_in(0, 0)
    assert Fault("rebuild", "kill").strikes_in(0, 1)


@pytest.mark.parametrize("way", ["SIGKILL", "SIGSEGV"])
async def test_the_last_death_of_an_item_that_kills_is_in_its_error(way: str) -> None:
    number = getattr(signal, way)

    def load(item: int, arrays: Any, seed: int | None) -> None:
        import os

        if item == 3:
            os.kill(os.getpid(), number)

    async with bench(load, num_workers=1) as b:
        with pytest.raises(ItemError, match=f"killed by {way}") as caught:
            await b.fill(range(ROWS))
        error = caught.value
        assert (error.row, error.exitcode) == (3, -number)
        assert f"(pid {error.pid})" in str(error)
