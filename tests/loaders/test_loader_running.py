"""A running loader: limits kept, waits ended, interrupts, and executors of the user's own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import mmap
import os
import threading
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pytest
from loading import additional, each, host, loop_steps
from support import simple_group, simple_load, until

from aioloader import BatchTimeoutError, DataGroup, Loader, LoadError
from aioloader.errors import ItemError
from aioloader.protocols import Executor, Filled, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioloader.protocols import Segment, Slot

ARRAYS = {"x": ((2,), "int32", "int32")}


def _group(length: int = 64, batch_size: int = 8, **options: Any) -> DataGroup[int]:
    return DataGroup(batch_size, range(length), loader_arrays=ARRAYS, **options)


class _Turnstile:
    """Lets calls in, and out again once as many are inside as are expected at once."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.inside = self.peak = self.passed = 0
        self._full = asyncio.Event()

    async def pass_through(self) -> None:
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        if self.inside >= self.expected:
            self._full.set()
        await self._full.wait()
        for _ in range(3):  # time for one more to come in, if any may
            await asyncio.sleep(0)
        self.inside -= 1
        self.passed += 1


@pytest.mark.parametrize("limit", [1, 3, 8, 20, 24])
@pytest.mark.parametrize("stage", ["load", "fetch"])
async def test_as_many_coroutines_run_at_once_as_are_allowed_and_no_more(
    stage: str, limit: int
) -> None:
    """Over the rows of all batches that are under way, for `load` as for `fetch`."""
    gate = _Turnstile(limit)

    async def load(item: int, arrays: Any, seed: int | None) -> None:
        await gate.pass_through()

    async def fetch(item: int) -> int:
        await gate.pass_through()
        return item

    options: dict[str, Any] = {"fetch": fetch, "num_workers": 0} if stage == "fetch" else {}
    loader = Loader(
        simple_load_x if stage == "fetch" else load,
        _group(),
        max_concurrency=limit,
        end_at=("epoch", 1),
        **options,
    )  # three batches of eight rows are under way at once
    assert await each(loader, lambda b: b.group_index) == list(range(8))
    assert (gate.peak, gate.passed, gate.inside) == (limit, 64, 0)


def simple_load_x(item: int, arrays: Any, seed: int | None) -> None:
    """Fill the row with its item."""
    arrays["x"][...] = item


async def test_depth_limits_how_many_batches_exist() -> None:
    """Loading, ready and on loan together."""
    for depth in (1, 2, 5):
        started: list[int] = []

        async def load(item: int, arrays: Any, seed: int | None, seen: Any = started) -> None:
            seen.append(item)

        async with Loader(load, _group(), depth=depth) as loader:
            await until(lambda d=depth, seen=started: len(seen) == 8 * d)
            await until(lambda d=depth, of=loader: of.statistics().ready == d)
            batch = await anext(loader)
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(started) == 8 * depth
            del batch
            await until(lambda d=depth, seen=started: len(seen) == 8 * (d + 1))


def _copied(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
    return {name: jax.numpy.array(array) for name, array in arrays.items()}


@pytest.mark.parametrize("way", ["converted", "placed by a function"])
async def test_depth_limits_batches_that_have_left_their_slots_as_well(way: str) -> None:
    """Copied to a device or converted, they take memory all the same while nobody takes them."""
    arrays = {"x": ((2,), "int32", "float32" if way == "converted" else "int32")}
    group = DataGroup(8, range(8 * 1000), loader_arrays=arrays)
    options: dict[str, Any] = {} if way == "converted" else {"place": _copied}
    async with Loader(simple_load_x, group, num_workers=0, depth=3, **options) as loader:
        await anext(loader)
        most = 0
        deadline = asyncio.get_running_loop().time() + 0.5
        while most <= 3 and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.005)
            figures = loader.statistics()
            most = max(most, figures.ready + figures.loading)
        assert most == 3


@pytest.mark.parametrize("num_workers", [0, 1])
async def test_a_wait_that_is_too_long_ends_in_an_error_and_loses_nothing(
    tmp_path: Any, num_workers: int
) -> None:
    """It says how many batches are being loaded; asking again goes on waiting."""
    opened = tmp_path / "opened"

    def load(item: int, arrays: Any, seed: int | None) -> None:
        while item == 0 and not opened.exists():
            threading.Event().wait(0.002)
        simple_load_x(item, arrays, seed)

    async with Loader(
        load, _group(), timeout=0.05, num_workers=num_workers, depth=2, end_at=("epoch", 1)
    ) as loader:
        for _ in range(2):
            with pytest.raises(BatchTimeoutError, match=r"0\.05 s: 2 batches are being loaded"):
                await anext(loader)
        opened.touch()
        while True:
            try:
                batch = await anext(loader)
                break
            except BatchTimeoutError:
                continue
        assert list(batch.indices) == list(range(8))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("stage", ["load", "place"])
async def test_an_error_that_was_caught_keeps_no_slot(stage: str, num_workers: int) -> None:
    """It goes with the last reference to it, and with it the batch that its consumer had."""

    def fail(item: int) -> None:
        if item == 9:
            raise ValueError("a bad item")

    def load(item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = item
        if stage == "load":
            fail(item)

    def place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
        fail(int(arrays["x"][1, 0]))
        return jax.device_put(dict(arrays))

    async def read(loader: Loader[int], seen: list[int]) -> None:
        async for batch in loader:
            seen += [batch.group_index]

    options: dict[str, Any] = {"place": place} if stage == "place" else {}
    options |= {"timeout": 3 if num_workers else 0.3, "num_workers": num_workers}
    loader = Loader(load, _group(), depth=2, end_at=("epoch", 1), **options)
    seen: list[int] = []
    gc.disable()
    try:
        async with loader:
            with contextlib.suppress(LoadError):
                await read(loader, seen)
            assert seen == [0]
            await read(loader, seen)
    finally:
        gc.enable()
    assert seen == [0, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("timeout", [None, 0])
async def test_without_a_timeout_a_wait_lasts_as_long_as_it_has_to(timeout: Any) -> None:
    """None and 0 are no limit, and not a limit of nothing."""
    opened = asyncio.Event()

    async def load(item: int, arrays: Any, seed: int | None) -> None:
        await opened.wait()
        simple_load_x(item, arrays, seed)

    async with Loader(load, _group(), timeout=timeout) as loader:
        waiting = asyncio.ensure_future(anext(loader))
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        opened.set()
        assert (await waiting).group_index == 0


async def test_unordered_batches_overtake_one_that_is_slow() -> None:
    """With `deterministic=False`; the slow one comes when it is ready."""
    opened = asyncio.Event()

    async def load(item: int, arrays: Any, seed: int | None) -> None:
        if item == 3:
            await opened.wait()

    loader = Loader(load, _group(), deterministic=False, end_at=("epoch", 1), depth=3, timeout=10)
    seen: list[int] = []
    async with loader:
        async for batch in loader:
            seen.append(batch.group_index)
            del batch
            if len(seen) == 7:
                opened.set()
    assert (sorted(seen[:7]), seen[7:]) == ([1, 2, 3, 4, 5, 6, 7], [0])


@pytest.mark.parametrize("way", ["processes", "thread"])
@pytest.mark.parametrize("rows", [1, 37, 300])
async def test_a_vectorized_load_gets_chunks_of_rows(way: str, rows: int) -> None:
    """Items, seeds and arrays of one length, each row once; columns are put together again."""

    def load(items: Any, arrays: Any, seeds: Any) -> dict[str, object]:
        count = len(items)
        assert len(seeds) == count == len(arrays["x"])
        assert arrays["x"].shape == (count, 2)
        arrays["x"][...] = np.asarray(items)[:, None]
        return {"seed": list(seeds), "chunk": [count] * count, "item": np.asarray(items)}

    group = _group(rows * 2 + 5, rows, drop_remainder=False, shuffle_first=True)
    loader = Loader(
        load,
        group,
        vectorized=True,
        num_workers=0 if way == "thread" else 2,
        end_at=("epoch", 1),
        validation=("epoch", 1, _group(rows, rows)),
    )
    seen = await each(
        loader,
        lambda b: (
            b.is_training,
            list(b.indices),
            host(b)["x"],
            additional(b),
            list(getattr(b, "seeds", [None] * len(b.indices))),
        ),
    )
    assert sum(training for training, *_ in seen) == group.batch_count
    for _, indices, x, extras, seeds in seen:
        assert (x == np.array(indices)[:, None]).all()
        assert [int(item) for item in extras["item"]] == indices
        assert extras["seed"] == seeds
        assert min(extras["chunk"]) >= 1


async def test_a_vectorized_coroutine_gets_whole_batches() -> None:
    """On the loop, many at once."""
    sizes: list[int] = []

    async def load(items: Any, arrays: Any, seeds: Any) -> dict[str, object]:
        sizes.append(len(items))
        await asyncio.sleep(0)
        arrays["x"][...] = np.asarray(items)[:, None]
        return {"seed": list(seeds)}

    group = _group(20, 8, drop_remainder=False)
    loader = Loader(load, group, vectorized=True, end_at=("epoch", 1))
    seen = await each(loader, lambda b: (list(b.indices), host(b)["x"], additional(b), b.seeds))
    assert sizes == [8, 8, 4]
    for indices, x, extras, seeds in seen:
        assert x[:, 0].tolist() == indices
        assert extras["seed"] == list(seeds)


async def test_a_vectorized_load_takes_fetched_payloads() -> None:
    """Whatever came in together is one chunk."""

    async def fetch(item: int) -> int:
        await asyncio.sleep(0)
        return item * 10

    def load(payloads: Any, arrays: Any, seeds: Any) -> dict[str, object]:
        arrays["x"][...] = np.asarray(payloads)[:, None]
        return {"seed": list(seeds)}

    loader = Loader(load, _group(), fetch=fetch, vectorized=True, end_at=("epoch", 1))
    for indices, x, extras, seeds in await each(
        loader,
        lambda b: (list(b.indices), host(b)["x"], additional(b), b.seeds),
    ):
        assert x[:, 1].tolist() == [10 * index for index in indices]
        assert extras["seed"] == list(seeds)


@pytest.mark.parametrize("stage", ["load", "fetch"])
async def test_coroutines_that_never_wait_leave_the_loop_its_turns(stage: str) -> None:
    """As where everything is in a memory cache: a batch of thousands is many steps, not one."""

    async def load(item: int, arrays: Any, seed: int | None) -> None: ...

    async def fetch(item: int) -> int:
        return item

    options: dict[str, Any] = {"fetch": fetch, "num_workers": 1} if stage == "fetch" else {}
    group = DataGroup(4096, range(10 * 4096), loader_arrays=ARRAYS)
    with loop_steps() as steps:
        async with Loader(
            simple_load_x if stage == "fetch" else load, group, end_at=("epoch", 1), **options
        ) as loader:
            async for batch in loader:
                del batch
    assert sorted(steps)[-4] < 4e-3


@pytest.mark.parametrize("stage", ["load", "fetch"])
async def test_a_coroutine_that_hangs_is_cancelled_and_named(stage: str) -> None:
    """After `item_timeout`; the batches around it arrive."""
    cancelled: list[int] = []

    async def hang(item: int, *_: Any) -> Any:
        if item == 13:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(item)
                raise
        return None if _ else item

    options: dict[str, Any] = {"fetch": hang, "num_workers": 0} if stage == "fetch" else {}
    load = simple_load_x if stage == "fetch" else hang
    async with Loader(load, _group(24), item_timeout=0.1, end_at=("epoch", 1), **options) as loader:
        assert (await anext(loader)).group_index == 0
        with pytest.raises(LoadError, match=r"row 5 \(item 13\).*item_timeout=0\.1") as caught:
            await anext(loader)
        assert isinstance(caught.value.__cause__, TimeoutError)
        assert (await anext(loader)).group_index == 2
    assert cancelled == [13]


@pytest.mark.parametrize("stage", ["load", "fetch"])
async def test_coroutines_are_tried_again(stage: str) -> None:
    """As often as `retries` says, and counted; one failure more is the item's error."""
    tries: dict[int, int] = {}

    async def flaky(item: int, *_: Any) -> Any:
        tries[item] = tries.get(item, 0) + 1
        if item == 9 or (item in (3, 20) and tries[item] == 1):
            raise ConnectionError(f"try {tries[item]} of item {item}")
        return None if _ else item

    options: dict[str, Any] = {"fetch": flaky, "num_workers": 0} if stage == "fetch" else {}
    load = simple_load_x if stage == "fetch" else flaky
    async with Loader(load, _group(24), retries=1, end_at=("epoch", 1), **options) as loader:
        assert (await anext(loader)).group_index == 0
        with pytest.raises(LoadError, match="try 2 of item 9"):
            await anext(loader)
        assert (await anext(loader)).group_index == 2
        assert loader.statistics().retries >= 2
    assert {item: count for item, count in tries.items() if count > 1} == {3: 2, 9: 2, 20: 2}


async def test_what_is_dropped_after_a_resume_is_no_more_than_it_was_before() -> None:
    """A run that is begun within an epoch ends as the whole run does."""

    def load(item: int, arrays: Any, seed: int | None) -> None:
        if item == 63:
            raise ValueError("unreadable")

    def make(**options: Any) -> Loader[int]:
        group = _group(shuffle_later="repeat")
        return Loader(load, group, on_error="drop", num_workers=0, end_at=("epoch", 2), **options)

    whole = await each(make(), lambda b: b.group_index)
    assert whole == [0, 1, 2, 3, 4, 5, 6] * 2
    assert await each(make(start_at=(0, 7)), lambda b: b.group_index) == whole[7:]


async def test_an_interrupt_before_entering_ends_the_next_run_at_once_and_no_other() -> None:
    """Nothing is delivered, nothing is lost, and the run after that is whole."""
    loader = Loader(simple_load, simple_group(), num_workers=0, end_at=("epoch", 1))
    assert not loader.interrupted
    loader.interrupt()
    async with loader:
        assert loader.interrupted
        assert [batch async for batch in loader] == []
    assert loader.get_state()["position"] == 0
    async with loader:
        assert not loader.interrupted
        assert [batch.group_index async for batch in loader] == list(range(8))
    assert not loader.interrupted


async def test_an_interrupt_delivers_what_is_loaded_and_begins_nothing_more() -> None:
    """Batches that are ready still come; the stream then ends for good."""
    started: list[int] = []

    async def load(item: int, arrays: Any, seed: int | None) -> None:
        started.append(item)

    async with Loader(load, _group(), depth=3) as loader:
        first = (await anext(loader)).group_index
        await until(lambda: loader.statistics().ready == 3)
        loader.interrupt()
        loader.interrupt()
        rest = [batch.group_index async for batch in loader]
        assert loader.interrupted
        assert [first, *rest] == [0, 1, 2, 3]
        assert loader.get_state()["position"] == 4
        with pytest.raises(StopAsyncIteration):
            await anext(loader)
    assert sorted(started) == list(range(32))


async def test_an_interrupt_wakes_a_consumer_that_waits() -> None:
    """Also where what it waits for would never come."""

    async def load(item: int, arrays: Any, seed: int | None) -> None:
        await asyncio.Event().wait()

    async with Loader(load, _group(), timeout=None) as loader:
        waiting = asyncio.ensure_future(anext(loader, None))
        await until(lambda: loader.statistics().loading == 3)
        loader.interrupt()
        assert await asyncio.wait_for(waiting, 10) is None


class _Plain:
    """A segment of the user's own."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.buffer: Any = mmap.mmap(-1, nbytes)
        self.closed = False

    def close(self) -> None:
        self.buffer, self.closed = None, True


class _OwnExecutor:
    """The smallest executor: it fills the rows here and now."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.segment: _Plain | None = None
        self.log: list[str] = []

    def allocate(self, nbytes: int) -> Segment:
        self.log.append("allocate")
        self.segment = _Plain(nbytes)
        return self.segment

    async def __aenter__(self) -> Executor:
        self.log.append("enter")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.log.append("exit")

    async def fill(
        self,
        slot: Slot,
        rows: Sequence[int],
        items: Sequence[object],
        seeds: Sequence[int | None],
    ) -> Filled:
        column = []
        for row, item, seed in zip(rows, items, seeds, strict=True):
            if item == 13:
                raise ItemError("thirteen", row=row)
            arrays = {name: array[row, ...] for name, array in slot.arrays.items()}
            returned = self.work.load(item, arrays, seed)
            column.append(None if returned is None else returned.get("third"))
        return Filled({"third": column})


async def _read(loader: Loader[int], seen: list[int]) -> None:
    async for batch in loader:
        seen += batch.arrays["x"][:, 0].tolist()
        thirds = [i if i % 3 == 0 else None for i in batch.indices]
        assert list(batch.additional["third"]) == thirds


async def test_an_executor_of_the_users_own_takes_the_place_of_the_loaders() -> None:
    """A function from the work to an executor: all that is needed is the protocol."""
    made: list[_OwnExecutor] = []

    def factory(work: Work) -> Executor:
        made.append(_OwnExecutor(work))
        return made[-1]

    loader = Loader(simple_load, simple_group(), executor=factory, end_at=("epoch", 1))
    for run in (1, 2):
        seen: list[int] = []
        async with loader:
            with pytest.raises(LoadError, match=r"row 5 \(item 13\): thirteen"):
                await _read(loader, seen)
            await _read(loader, seen)
        assert seen == [*range(8), *range(16, 64)]
        assert len(made) == run  # a new one each time the loader is entered
        assert made[-1].log == ["allocate", "enter", "exit"]
        assert made[-1].segment is not None
        assert made[-1].segment.closed
        assert made[-1].work.num_workers == 1


async def test_an_executor_that_cannot_start_is_an_error_of_entering() -> None:
    """Its own exception, and nothing stays behind."""

    class Broken(_OwnExecutor):
        async def __aenter__(self) -> Executor:
            raise ConnectionError("no cluster")

    made: list[Broken] = []

    def factory(work: Work) -> Executor:
        made.append(Broken(work))
        return made[-1]

    loader = Loader(simple_load, simple_group(), executor=factory)
    for _ in range(2):
        with pytest.raises(ConnectionError, match="no cluster"):
            await loader.__aenter__()
        assert made[-1].segment is not None
        assert made[-1].segment.closed


async def test_one_group_may_be_drained_by_two_loaders_at_once() -> None:
    """In one loop, with workers each, and neither takes anything from the other."""
    group = simple_group()
    loaders = [Loader(simple_load, group, end_at=("epoch", 2), num_workers=1) for _ in range(2)]
    first, second = await asyncio.gather(*(each(one, host) for one in loaders))
    assert len(first) == len(second) == 16
    for a, b in zip(first, second, strict=True):
        assert all((a[name] == b[name]).all() for name in a)


async def test_workers_are_other_processes_and_a_thread_is_not() -> None:
    """`num_workers=0` loads here, off the loop's thread."""

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
        return {"pid": os.getpid(), "thread": threading.get_ident()}

    here = (os.getpid(), threading.get_ident())
    for num_workers in (0, 2):
        loader = Loader(load, _group(), num_workers=num_workers, end_at=("epoch", 1))
        columns = await each(loader, additional)
        pids = {pid for column in columns for pid in column["pid"]}
        if num_workers == 0:
            assert pids == {here[0]}
            assert here[1] not in {t for column in columns for t in column["thread"]}
        else:
            assert here[0] not in pids
            assert 1 <= len(pids) <= 2
