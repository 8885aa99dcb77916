"""The deadline: it ends its own block and nothing else, however it is mixed with other endings."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from aioloader._fetching import deadline as module
from aioloader._fetching.deadline import Deadline


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def test_a_block_that_takes_too_long_ends_in_silence() -> None:
    with Deadline(0.01) as deadline:
        await asyncio.sleep(60)
    assert deadline.has_passed
    assert cancelling() == 0
    await asyncio.sleep(0)  # nothing is left that would cancel it later


async def test_a_block_that_is_in_time_is_left_alone() -> None:
    with Deadline(0.01) as deadline:
        await asyncio.sleep(0)
    await asyncio.sleep(0.03)
    assert not deadline.has_passed


async def test_without_a_limit_it_does_nothing() -> None:
    with Deadline(None) as deadline:
        await asyncio.sleep(0.01)
    assert not deadline.has_passed


@pytest.mark.parametrize("error", [ValueError("it"), TimeoutError("its own")], ids=repr)
async def test_errors_of_the_block_come_through(error: Exception) -> None:
    """In time, and also where they are what the block makes of being cancelled."""
    with pytest.raises(type(error), match=str(error)), Deadline(60):
        raise error
    with pytest.raises(type(error), match=str(error)), Deadline(0.01) as deadline:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise error from None
    assert deadline.has_passed
    assert cancelling() == 0


async def test_who_swallows_the_cancellation_is_cancelled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.01)
    swallowed = 0
    with Deadline(0.01) as deadline:
        while swallowed < 3:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
        await asyncio.sleep(60)
    assert swallowed == 3
    assert deadline.has_passed
    assert cancelling() == 0


async def wait(deadline: Deadline, out: list[str]) -> None:
    with deadline:
        await asyncio.sleep(60)
    out.append("went on")


async def test_a_cancellation_from_outside_comes_through() -> None:
    out: list[str] = []
    task = asyncio.create_task(wait(Deadline(60), out))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not out


@pytest.mark.parametrize("first", ["deadline", "outside"])
async def test_both_at_once_are_a_cancellation_from_outside(first: str) -> None:
    """Whichever comes first in the same turn of the loop."""
    out: list[str] = []
    deadline = Deadline(60)
    task = asyncio.create_task(wait(deadline, out))
    await asyncio.sleep(0)
    if first == "outside":
        task.cancel()
    deadline._pass()
    if first == "deadline":
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not out


@pytest.mark.parametrize("outer", [0.01, 60])
async def test_inside_a_scope_of_anyio(outer: float) -> None:
    """The scope's own cancellation is the scope's, and the deadline's is the deadline's."""
    out: list[str] = []
    with anyio.move_on_after(outer) as scope:
        await wait(Deadline(0.02 if outer == 60 else 60), out)
    assert (out, scope.cancelled_caught) == (["went on"], False) if outer == 60 else ([], True)
    await anyio.lowlevel.checkpoint()
    assert cancelling() == 0


async def test_around_a_scope_of_anyio() -> None:
    with Deadline(0.01) as deadline:
        with anyio.CancelScope():
            await anyio.sleep(60)
    assert deadline.has_passed
    assert cancelling() == 0


async def test_one_inside_another() -> None:
    """The inner one's end is not the outer one's, and the other way round."""
    with Deadline(60) as outer:
        with Deadline(0.01) as inner:
            await asyncio.sleep(60)
        await asyncio.sleep(0)
    assert (outer.has_passed, inner.has_passed) == (False, True)
    reached: list[Any] = []
    with Deadline(0.01) as outer:
        with Deadline(60) as inner:
            await asyncio.sleep(60)
        reached.append(inner)
    assert (outer.has_passed, inner.has_passed, reached) == (True, False, [])
