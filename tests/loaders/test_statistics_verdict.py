"""Statistics: snapshots that add up, and a verdict that names the bottleneck."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import TYPE_CHECKING, Any

import jax
import pytest
from support import until

from aioloader import DataGroup, Loader, LoaderStatistics

if TYPE_CHECKING:
    from collections.abc import Callable

ARRAYS = {"x": ((100,), "int32", "float32"), "y": ((), "int64", "int32")}
BATCH_BYTES = 4 * (100 * 4 + 8)


def _load(item: int, arrays: Any, seed: int | None) -> None:
    arrays["x"][...] = item


def _group(length: int = 40, **options: Any) -> DataGroup[int]:
    return DataGroup(4, range(length), loader_arrays=ARRAYS, **options)


def _place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
    return {n: jax.device_put(a).astype(layouts[n].jax_dtype) for n, a in arrays.items()}


async def test_a_loader_that_has_not_run_has_done_nothing() -> None:
    """All counts and seconds are zero."""
    figures = dataclasses.asdict(Loader(_load, _group()).statistics())
    assert figures.pop("bound_by") in ("fetch", "load", "place", "consumer")
    assert figures.pop("fetch") is None
    cache = figures.pop("cache")
    assert set(figures.values()) | set(cache.values()) == {0}


async def test_a_snapshot_cannot_change() -> None:
    """Neither by the program nor by the loader that goes on."""
    async with Loader(_load, _group(), num_workers=0) as loader:
        await anext(loader)
        snapshot = loader.statistics()
        assert isinstance(snapshot, LoaderStatistics)
        copied = dataclasses.asdict(snapshot)
        await anext(loader)
        assert dataclasses.asdict(snapshot) == copied
        assert loader.statistics().delivered == snapshot.delivered + 1
        with pytest.raises(dataclasses.FrozenInstanceError):
            snapshot.delivered = 5


async def test_counts_add_up() -> None:
    """Batches, rows and bytes of what was delivered, smaller last batches included."""
    group = _group(42, drop_remainder=False)
    async with Loader(_load, group, num_workers=0, end_at=("epoch", 2)) as loader:
        async for batch in loader:
            figures = loader.statistics()
            assert figures.delivered == batch.batch_num + 1
            assert 0 <= figures.loading <= 3
            assert 0 <= figures.on_loan <= 3
            assert figures.waiting in (0, 1)
            assert figures.dropped == figures.retries == figures.worker_deaths == 0
            assert 0 <= figures.idle_share <= 1
    figures = loader.statistics()
    assert (figures.delivered, figures.rows) == (22, 84)
    assert figures.bytes == 20 * BATCH_BYTES + 2 * BATCH_BYTES // 2
    assert figures.load_seconds > 0
    assert figures.wait_seconds > 0
    assert figures.fetch_seconds == figures.store_seconds == 0


async def test_counts_tell_what_is_going_on() -> None:
    """Loading, then ready, then on loan; a full loader waits for a slot."""
    opened = asyncio.Event()

    async def load(item: int, arrays: Any, seed: int | None) -> None:
        await opened.wait()
        _load(item, arrays, seed)

    arrays = {"x": ((100,), "int32", "int32")}
    group = DataGroup(4, range(40), loader_arrays=arrays)
    async with Loader(load, group, depth=2) as loader:
        await until(lambda: loader.statistics().loading == 2)
        figures = loader.statistics()
        assert (figures.waiting, figures.loading, figures.ready) == (1, 2, 0)
        opened.set()
        await until(lambda: loader.statistics().ready == 2)
        held = [await anext(loader), await anext(loader)]
        await until(lambda: loader.statistics().waiting == 1)
        figures = loader.statistics()
        assert (figures.loading, figures.ready, figures.on_loan) == (0, 0, 2)
        held.clear()
        await until(lambda: loader.statistics().ready == 2)


async def test_each_run_counts_for_itself() -> None:
    """Figures are of the run since the loader was entered."""
    loader = Loader(_load, _group(), num_workers=0, end_at=("epoch", 1))
    for _ in range(2):
        async with loader:
            assert loader.statistics().delivered == 0
            async for _batch in loader:
                pass
        assert loader.statistics().delivered == 10


async def test_idle_time_is_told_once() -> None:
    """Each call counts from the one before."""

    def load(item: int, arrays: Any, seed: int | None) -> None:
        time.sleep(0.005)

    async with Loader(load, _group(), num_workers=0) as loader:
        assert loader.idle_usec() == 0
        started = time.perf_counter()
        await anext(loader)
        elapsed = (time.perf_counter() - started) * 1e6
        idle = loader.idle_usec()
        assert type(idle) is int
        assert 15_000 < idle <= elapsed
        assert loader.idle_usec() == 0
        await until(lambda: loader.statistics().ready == 3)
        await anext(loader)  # it is there already
        assert loader.idle_usec() == 0


async def test_what_a_run_has_done_does_not_change_when_it_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its rate, its shares and its verdict are those of the run, however late they are asked."""

    def load(item: int, arrays: Any, seed: int | None) -> None:
        time.sleep(0.002)

    loader = Loader(load, _group(), num_workers=0, end_at=("epoch", 1))
    async with loader:
        async for _batch in loader:
            pass
    before = loader.statistics()
    assert before.bound_by == "load"
    clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + 3600)
    assert loader.statistics() == before


async def _slow_fetch(item: int) -> int:
    await asyncio.sleep(0.004)
    return item


def _slow_load(item: int, arrays: Any, seed: int | None) -> None:
    time.sleep(0.004)


async def _slow_async_load(item: int, arrays: Any, seed: int | None) -> None:
    await asyncio.sleep(0.004)


def _slow_place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
    time.sleep(0.012)
    return _place(arrays, layouts, additional, group)


async def _fetch(item: int) -> int:
    return item


SLOW: dict[str, tuple[str, Callable[..., Any], dict[str, Any]]] = {
    "fetching, one at a time": ("fetch", _load, {"fetch": _slow_fetch, "max_concurrency": 1}),
    "fetching into workers": (
        "fetch",
        _load,
        {"fetch": _slow_fetch, "max_concurrency": 2, "num_workers": 1},
    ),
    "loading in a thread": ("load", _slow_load, {}),
    "loading in workers": ("load", _slow_load, {"num_workers": 2}),
    "loading by coroutines": ("load", _slow_async_load, {"max_concurrency": 2}),
    "loading what is fetched quickly": ("load", _slow_load, {"fetch": _fetch}),
    "placing": ("place", _load, {"place": _slow_place}),
    "placing what is fetched": ("place", _load, {"place": _slow_place, "fetch": _fetch}),
}


@pytest.mark.parametrize("what", list(SLOW))
async def test_the_slow_stage_is_named(what: str) -> None:
    """A consumer that does nothing waits for one stage more than for all others."""
    stage, load, options = SLOW[what]
    options = {"num_workers": 0} | options
    async with Loader(load, _group(10_000), end_at=("batch", 25), **options) as loader:
        async for _batch in loader:
            pass
        figures = loader.statistics()
    assert figures.bound_by == stage
    seconds = {s: getattr(figures, f"{s}_seconds") for s in ("fetch", "load", "place")}
    assert max(seconds, key=lambda s: seconds[s]) == stage


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_slow_consumer_is_named(blocking: bool) -> None:
    """Whether its step blocks the loop or lets go of it."""
    options: dict[str, Any] = {"fetch": _fetch, "place": _place, "num_workers": 1, "depth": 4}
    async with Loader(_load, _group(10_000), end_at=("batch", 15), **options) as loader:
        async for batch in loader:
            del batch
            if blocking:
                time.sleep(0.04)
            else:
                await asyncio.sleep(0.04)
        figures = loader.statistics()
    assert figures.bound_by == "consumer"
    assert figures.idle_share < 0.05


async def test_rates_are_of_the_time_since_the_first_batch() -> None:
    """The start of workers is no rate: rows of later batches, by the seconds they took."""

    def load(item: int, arrays: Any, seed: int | None) -> None:
        time.sleep(0.002)

    async with Loader(load, _group(400), num_workers=0, end_at=("batch", 20)) as loader:
        await anext(loader)
        started = time.perf_counter()
        async for _batch in loader:
            pass
        seconds = time.perf_counter() - started
        figures = loader.statistics()
    assert figures.rows_per_second == pytest.approx(19 * 4 / seconds, rel=0.2)
    assert figures.elapsed_seconds == pytest.approx(seconds, rel=0.2)
    assert figures.wait_seconds <= figures.elapsed_seconds + 1
