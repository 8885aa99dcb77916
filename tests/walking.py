"""Walks through datasets: every way to iterate, and to stop and go on elsewhere."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from aioloader import DatasetIterator


def plain(element: Any) -> Any:
    """Return an element as something that compares, with the types of its arrays."""
    if isinstance(element, dict):
        return {key: plain(value) for key, value in element.items()}
    if isinstance(element, (list, tuple)):
        return [type(element).__name__, *map(plain, element)]
    if isinstance(element, (np.ndarray, np.generic)):
        return [str(element.dtype), element.shape, element.tolist()]
    return element


def outcome_of(error: Exception) -> Any:
    """Return an exception as something that compares."""
    return (type(error).__name__, str(error))


def walk(iterator: DatasetIterator[Any], count: int | None = None) -> list[Any]:
    """Return what `next` gives, errors too, to the end or ``count`` times."""
    seen: list[Any] = []
    while count is None or len(seen) < count:
        try:
            seen.append(plain(next(iterator)))
        except StopIteration:
            break
        except Exception as error:
            seen.append(outcome_of(error))
    return seen


async def walk_async(iterator: DatasetIterator[Any], count: int | None = None) -> list[Any]:
    """Do the same with `anext`."""
    seen: list[Any] = []
    while count is None or len(seen) < count:
        try:
            seen.append(plain(await anext(iterator)))
        except StopAsyncIteration:
            break
        except Exception as error:
            seen.append(outcome_of(error))
    return seen


def shape_of(state: Any) -> Any:
    """Return a state with types in the place of values."""
    if isinstance(state, dict):
        return {key: shape_of(value) for key, value in state.items()}
    if isinstance(state, list):
        return [shape_of(value) for value in state]
    return type(state).__name__


def check_walks(dataset: Any, *, is_uniform: bool = True) -> list[Any]:
    """Check that a dataset is the same however it is walked through, and return what it is.

    With `for` and `async for`; from every position on in another iterator and in the same one,
    by states that went through JSON and, if the dataset is uniform, have one shape.
    """
    states = []
    whole: list[Any] = []
    with iter(dataset) as iterator:
        while True:
            states.append(json.dumps(iterator.get_state()))
            seen = walk(iterator, 1)
            if not seen:
                break
            whole += seen
        ended = json.dumps(iterator.get_state())
        assert walk(iterator) == []
    shapes = {json.dumps(shape_of(json.loads(state))) for state in [*states, ended]}
    assert len(shapes) == 1 or not is_uniform
    asyncio.run(_check_async(dataset, whole, [*states, ended]))
    with iter(dataset) as again:
        for position, state in enumerate([*states, ended]):
            rest = whole[position:]
            with iter(dataset) as other:
                other.set_state(json.loads(state))
                assert json.dumps(other.get_state()) == state
                assert walk(other) == rest, f"from {position} on, in another iterator"
            again.set_state(json.loads(state))
            assert walk(again, 2) == rest[:2], f"from {position} on, in the same iterator"
    return whole


async def _check_async(dataset: Any, whole: list[Any], states: list[str]) -> None:
    async with aiter(dataset) as iterator:
        assert await walk_async(iterator) == whole
        for position in range(0, len(states), 3):
            iterator.set_state(json.loads(states[position]))
            assert await walk_async(iterator, 2) == whole[position:][:2]
            expected = states[min(position + 2, len(whole) + 1)]
            assert json.dumps(iterator.get_state()) == expected
