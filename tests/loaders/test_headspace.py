"""Headspace: one batch again and again, and the stream as if nobody had asked."""

from __future__ import annotations

import time
from typing import Any

import pytest
from support import simple_group, simple_load

from aioloader import BatchTimeoutError, Loader


def _loader(**options: Any) -> Loader[int]:
    return Loader(simple_load, simple_group(), end_at=("epoch", 1), **options)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("deterministic", [True, False])
async def test_the_next_batch_comes_again_and_again_and_then_in_its_turn(
    workers: int, deterministic: bool
) -> None:
    """Nothing is taken from the stream, and no slot stays on loan."""
    async with _loader(num_workers=workers, deterministic=deterministic) as loader:
        seen = [(await anext(loader)).batch_num]
        state = loader.get_state()
        replayed = [batch async for batch in loader.headspace(20)]
        assert len({batch.batch_num for batch in replayed}) == 1
        assert len({id(batch) for batch in replayed}) == 20
        assert loader.get_state() == state
        following = replayed[0].batch_num
        del replayed
        seen += [batch.batch_num async for batch in loader]
    assert seen[1] == following
    assert sorted(seen) == list(range(8))


async def test_its_rates_are_those_of_the_consumer() -> None:
    """Whatever the loader does: here an item takes as long as ten batches of the consumer."""

    def slow(item: int, arrays: Any, seed: int | None) -> None:
        time.sleep(0.01)
        simple_load(item, arrays, seed)

    async with Loader(slow, simple_group(), num_workers=1, end_at=("epoch", 1)) as loader:
        headspace = loader.headspace(200)
        assert headspace.rows_per_second == 0.0
        async for batch in headspace:
            batch.arrays["x"].sum()
            del batch
        delivered = len([batch.batch_num async for batch in loader])
        assert delivered == 8
        assert headspace.rows_per_second > 2 * loader.statistics().rows_per_second
        assert headspace.rows_per_second == pytest.approx(8 * headspace.batches_per_second)
    assert "200 batches" in repr(headspace)
    with pytest.raises(StopAsyncIteration):
        await anext(headspace)


async def test_its_slot_returns_when_it_is_dropped() -> None:
    """In the middle, too: with two slots the stream goes on, which it could not with one."""
    async with _loader(num_workers=0, depth=2) as loader:
        headspace = loader.headspace(10)
        first = (await anext(headspace)).batch_num
        assert first == 0
        del headspace
        assert [batch.batch_num async for batch in loader] == list(range(8))


async def test_there_has_to_be_a_batch() -> None:
    """A failed one, the end of the stream and a loader that is not running have none."""

    def failing(item: int, arrays: Any, seed: int | None) -> None:
        raise LookupError(item)

    async with Loader(failing, simple_group(), num_workers=0) as loader:
        with pytest.raises(RuntimeError, match="has failed"):
            await anext(loader.headspace())
    async with _loader(num_workers=0) as loader:
        assert len([batch.batch_num async for batch in loader]) == 8
        with pytest.raises(RuntimeError, match="there is none"):
            await anext(loader.headspace())
    with pytest.raises(RuntimeError, match="enter the loader first"):
        await anext(loader.headspace())
    for batches in (0, -1):
        with pytest.raises(ValueError, match=f"batches .*{batches}"):
            loader.headspace(batches)


async def test_it_waits_no_longer_than_the_loader() -> None:
    def stuck(item: int, arrays: Any, seed: int | None) -> None:
        time.sleep(2)

    async with Loader(stuck, simple_group(), num_workers=1, timeout=0.05) as loader:
        with pytest.raises(BatchTimeoutError):
            await anext(loader.headspace())
