"""The cache against a model of it, and under random tasks, threads, failures and cancellations."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)
from providers import CONFIG, AsyncProvider, Provider
from support import both_loops, run_on, until

from aioloader import CacheStatistics, DataCache

ROWS = 6
INDICES = st.integers(0, ROWS - 1)
LENGTHS = st.sampled_from([0, 100, 500, 1000, 3000])


class Table:
    """Rows of changing lengths, some of which raise."""

    def __init__(self) -> None:
        self.lengths = [100] * ROWS
        self.failing: set[int] = set()

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> np.ndarray:
        if index in self.failing:
            raise OSError(index)
        return np.full(self.lengths[index], index, np.uint8)


def charge(length: int) -> int:
    """Return what an array is charged with."""
    cache = DataCache(CONFIG, range(1))
    cache.insert_into_cache(0, np.zeros(length, np.uint8))
    return cache._data_size_bytes


CHARGES = {length: charge(length) for length in (0, 100, 500, 1000, 3000)}


class Machine(RuleBasedStateMachine):
    """The cache and a plain dictionary of lengths, in step."""

    @initialize(
        policy=st.sampled_from(["lru", "fifo", "none"]),
        max_bytes=st.sampled_from([None, 0, 1500, 3000, 8000]),
    )
    def begin(self, policy: Any, max_bytes: int | None) -> None:
        self.policy, self.max_bytes, self.table = policy, max_bytes, Table()
        self.cache = DataCache(CONFIG, self.table, max_bytes=max_bytes, policy=policy)
        self.kept: OrderedDict[int, int] = OrderedDict()
        self.counts = dict.fromkeys(
            ("hits", "misses", "inserts", "replaced", "evictions", "refusals", "failures"), 0
        )

    def fits(self, nbytes: int) -> bool:
        return self.max_bytes is None or nbytes <= self.max_bytes

    def held(self) -> int:
        return sum(CHARGES[length] for length in self.kept.values())

    def put(self, index: int, length: int) -> None:
        older, nbytes = self.kept.pop(index, None), CHARGES[length]
        room = 0 if self.policy != "none" else self.held()
        if not self.fits(room + nbytes):
            self.counts["refusals"] += 1
            self.counts["evictions"] += older is not None
            return
        self.counts["replaced"] += older is not None
        while not self.fits(self.held() + nbytes):
            self.kept.popitem(last=False)
            self.counts["evictions"] += 1
        self.kept[index] = length
        self.counts["inserts"] += 1

    def use(self, index: int) -> int | None:
        length = self.kept.get(index)
        self.counts["misses" if length is None else "hits"] += 1
        if length is not None and self.policy == "lru":
            self.kept.move_to_end(index)
        return length

    @rule(index=INDICES, length=LENGTHS)
    def insert(self, index: int, length: int) -> None:
        self.cache.insert_into_cache(index, np.full(length, index, np.uint8))
        self.put(index, length)

    @rule(index=INDICES)
    def fetch(self, index: int) -> None:
        value, length = self.cache.try_fetch(index), self.use(index)
        assert (None if value is None else len(value)) == length
        assert value is None or (value == index).all()

    @rule(index=INDICES, length=LENGTHS, fails=st.booleans(), on_loop=st.booleans())
    def load(self, index: int, length: int, fails: bool, on_loop: bool) -> None:
        self.table.lengths[index] = length
        self.table.failing = {index} if fails else set()
        known = self.use(index)
        get = self.cache.get_or_load_sync
        try:
            value = asyncio.run(self.cache.get_or_load(index)) if on_loop else get(index)
        except OSError:
            assert known is None
            assert fails
            self.counts["failures"] += 1
            return
        assert len(value) == (length if known is None else known)
        if known is None:
            assert not fails
            self.put(index, length)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.counts["evictions"] += len(self.kept)
        self.kept.clear()

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "cache"):
            return
        now = self.cache.statistics()
        assert {name: getattr(now, name) for name in self.counts} == self.counts
        assert [len(value) for value in self.cache._cache_map.values()] == [*self.kept.values()]
        assert list(self.cache._cache_map) == list(self.kept)
        assert (now.items, now.bytes) == (len(self.kept), self.held())
        assert self.fits(now.bytes)
        assert (now.loading, now.waiting) == (0, 0)


Machine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)
TestMachine = Machine.TestCase


STEP = st.tuples(
    st.sampled_from(["task", "task", "task", "thread", "insert", "fetch", "preload"]),
    INDICES,
    st.one_of(st.none(), st.integers(0, 6)),  # after how many turns it is cancelled
)


@both_loops
@given(
    steps=st.lists(STEP, max_size=40),
    failing=st.sets(INDICES, max_size=2),
    policy=st.sampled_from(["lru", "fifo", "none"]),
    room=st.sampled_from([None, 0, 2, 4]),
    is_async=st.booleans(),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_mix_of_tasks_threads_and_cancellations_adds_up(
    loop: str, steps: Any, failing: set[int], policy: Any, room: int | None, is_async: bool
) -> None:
    """Counts, bounds and rows; nobody hangs, and nothing is left under way."""
    provider = (AsyncProvider if is_async else Provider)(ROWS)
    provider.failing = {index: OSError(index) for index in failing}
    max_bytes = None if room is None else room * entry_bytes()
    run_on(loop, mix(DataCache(CONFIG, provider, max_bytes=max_bytes, policy=policy), steps))
    for index in set(provider.asked):
        assert provider.asked.count(index) <= len(steps)


def entry_bytes() -> int:
    cache = DataCache(CONFIG, Provider(1))
    cache[0]
    return cache._data_size_bytes


async def mix(cache: DataCache, steps: list[tuple[str, int, int | None]]) -> None:
    """Do all steps at once, each in a task of its own, and check what comes of them."""
    fetches = inserts = 0
    tasks = []
    async with cache:
        for kind, index, patience in steps:
            fetches += kind in ("task", "thread", "fetch")
            if kind == "insert":
                inserts += 1
                cache.insert_into_cache(index, row_of(index))
            elif kind == "fetch":
                check_row(index, cache.try_fetch(index))
            else:
                tasks.append(asyncio.create_task(step(cache, kind, index, patience)))
            check(cache)
        await asyncio.gather(*tasks)
        await until(lambda: not cache.statistics().loading)
        now = check(cache)
        assert now.waiting == 0
        assert now.hits + now.misses == fetches
        assert now.items == now.inserts - now.replaced - now.evictions


def row_of(index: int) -> Any:
    return {"data": {"x": np.full(100, index), "id": str(index)}}


def check_row(index: int, row: Any) -> None:
    assert row is None or ((row["data"]["x"] == index).all() and row["data"]["id"] == str(index))


def check(cache: DataCache) -> CacheStatistics:
    """Check what holds at every moment."""
    now = cache.statistics()
    bound = cache._shelf._max_bytes
    assert bound is None or now.bytes <= bound
    assert now.bytes == sum(map(cache._data_size, cache._cache_map.values()))
    return now


async def step(cache: DataCache, kind: str, index: int, patience: int | None) -> None:
    if kind == "thread":
        work: Any = asyncio.to_thread(cache.__getitem__, index)
        patience = None  # a thread cannot be cancelled, and would be counted later
    else:
        work = cache.preload() if kind == "preload" else cache.get_or_load(index)
    task = asyncio.create_task(work)
    await asyncio.sleep(0)  # it has begun
    if patience is not None:
        for _ in range(patience):
            await asyncio.sleep(0)
            check(cache)
        task.cancel()
    try:
        row = await task
    except (OSError, asyncio.CancelledError):
        return
    if kind != "preload":
        check_row(index, row)
