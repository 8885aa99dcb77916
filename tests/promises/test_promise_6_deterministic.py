"""Promise 6: the same seed, the same bytes, in the same order, however it was loaded."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    both_loops,
    digest_of,
    digests,
    run_on,
    simple_coroutine_load,
    simple_group,
    simple_load,
)

from aioloader import Loader, StateError, ThreadExecutor

MODES = ["repeat", "reseed", "itemwise", "batchwise"]


def _loader(mode: str = "itemwise", **options: Any) -> Loader[int]:
    groups = [
        simple_group(30, 4, seed=3, shuffle_later=mode, drop_remainder=False),
        simple_group(50, 8, seed=3, shuffle_first=True, shuffle_later=mode),
    ]
    held_out = simple_group(10, 4, shuffle_later=mode)
    load = options.pop("load", simple_load)
    options.setdefault("num_workers", 0)
    return Loader(load, groups, validation=("batch", 5, held_out), end_at=("epoch", 3), **options)


WAYS: dict[str, dict[str, Any]] = {
    "one worker": {"num_workers": 1},
    "three workers, depth 1": {"num_workers": 3, "depth": 1},
    "two workers, depth 9": {"num_workers": 2, "depth": 9},
    "three threads": {"num_workers": 3, "executor": ThreadExecutor, "depth": 5},
    "coroutines": {"load": simple_coroutine_load, "max_concurrency": 3},
}


@pytest.mark.parametrize("mode", MODES)
def test_every_way_of_loading_gives_the_same_bytes(mode: str) -> None:
    """Workers, depth and executor change nothing."""
    expected = run_on("asyncio", digests(_loader(mode)))
    for way, options in WAYS.items():
        loop = "uvloop" if "depth" in options else "asyncio"
        assert run_on(loop, digests(_loader(mode, **options))) == expected, way


def test_fetching_and_vectorizing_give_the_same_bytes() -> None:
    """Payloads come in any order, chunks are cut anywhere."""

    async def fetch(item: int) -> int:
        return item

    def load_many(items: Any, arrays: Any, seeds: Any) -> Any:
        column = []
        for row, (item, seed) in enumerate(zip(items, seeds, strict=True)):
            extras = simple_load(item, {k: a[row, ...] for k, a in arrays.items()}, seed)
            column.append(None if extras is None else extras["third"])
        return {"third": column} if any(v is not None for v in column) else None

    expected = run_on("asyncio", digests(_loader()))
    assert run_on("asyncio", digests(_loader(fetch=fetch, num_workers=2))) == expected
    vectorized = _loader(load=load_many, vectorized=True, num_workers=2)
    assert run_on("asyncio", digests(vectorized)) == expected


def test_unordered_batches_are_the_same_batches() -> None:
    """Without `deterministic` the order is free, the set is not."""
    expected = run_on("asyncio", digests(_loader()))
    unordered = run_on("asyncio", digests(_loader(deterministic=False, num_workers=2)))
    assert sorted(unordered) == sorted(expected)


@pytest.mark.parametrize("stop", range(0, 53, 4))
def test_a_stop_at_any_boundary_resumes_exactly(stop: int) -> None:
    """Also in the middle of a validation run, and with other workers."""
    expected = run_on("asyncio", digests(_loader()))
    first, second = _loader(), _loader(depth=5)
    seen = run_on("asyncio", digests(first, limit=stop))
    second.set_state(first.get_state())
    assert seen + run_on("asyncio", digests(second)) == expected


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=6), st.booleans())
def test_however_often_it_is_resumed(stops: list[int], deterministic: bool) -> None:
    """k stops at random places: the pieces joined are the uninterrupted run."""
    expected = run_on("asyncio", digests(_loader()))
    seen: list[str] = []
    state = None
    for limit in [*stops, None]:
        loader = _loader(deterministic=deterministic, depth=1 + len(seen) % 4)
        if state is not None:
            loader.set_state(state)
        seen += run_on("asyncio", digests(loader, limit=limit))
        state = loader.get_state()
    assert (seen == expected) if deterministic else (sorted(seen) == sorted(expected))


@both_loops
def test_a_running_loader_goes_on_where_it_is_told(loop: str) -> None:
    """`set_state` while batches are under way drops them, and keeps the workers."""

    async def main() -> None:
        loader = _loader(num_workers=1)
        async with loader:
            seen, states = [], []
            for _ in range(12):
                states.append(loader.get_state())
                seen.append(digest_of(await anext(loader)))
            for position in (4, 0, 11):
                loader.set_state(states[position])
                assert digest_of(await anext(loader)) == seen[position]

    run_on(loop, main())


async def _fetch(item: int) -> int:
    await asyncio.sleep(0)
    return item


@both_loops
@pytest.mark.parametrize(
    "options",
    [{"num_workers": 0}, {"num_workers": 1}, {"load": simple_coroutine_load}, {"fetch": _fetch}],
    ids=["thread", "worker", "coroutine", "fetch"],
)
def test_what_is_dropped_on_the_way_gives_its_slots_back(
    loop: str, options: dict[str, Any]
) -> None:
    """Again and again, and without the help of a garbage collection."""

    async def main() -> None:
        loader = _loader(**options, depth=2, timeout=20)
        async with loader:
            state = loader.get_state()
            first = digest_of(await anext(loader))
            for _ in range(10):
                loader.set_state(state)
                assert digest_of(await anext(loader)) == first

    gc.disable()
    try:
        run_on(loop, main())
    finally:
        gc.enable()


def test_states_are_small_and_of_one_plan() -> None:
    """A state is JSON of less than 1 KiB; a foreign or damaged one is refused, with both sides."""
    import json

    state = _loader(depth=256, deterministic=False).get_state()
    assert len(json.dumps(state | {"ahead": "f" * 64})) < 1024
    other = Loader(simple_load, simple_group(), end_at=("epoch", 1))
    with pytest.raises(StateError, match="batches_per_epoch is 14, and this loader's is 8"):
        other.set_state(state)
    damages: list[dict[str, Any]] = [
        {"position": -1},
        {"position": "3"},
        {"ahead": "x"},
        {"version": 9},
    ]
    for damage in damages:
        with pytest.raises(StateError):
            _loader().set_state({**state, **damage})


def test_epochs_groups_and_seeds_differ() -> None:
    """Later epochs are shuffled and seeded anew; equal groups do not get equal item seeds."""

    async def main() -> None:
        groups = [simple_group(32, 8, shuffle_first=True) for _ in range(2)]
        seeds: list[int] = []
        orders = []
        async with Loader(simple_load, groups, end_at=("epoch", 2), num_workers=0) as loader:
            async for batch in loader:
                assert batch.is_training
                seeds += [*batch.seeds, batch.seed]
                orders.append(tuple(batch.indices))
        assert len(set(seeds)) == len(seeds) == 2 * 2 * (32 + 4)
        assert len(set(orders[:8]) & set(orders[8:])) == 0

    run_on("asyncio", main())
