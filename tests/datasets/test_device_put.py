"""Elements of a dataset on devices, ahead of use, with positions that can be saved."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import jax
import numpy as np
import pytest
from support import both_loops, run_on, until
from walking import walk

from aioloader import MapDataset, ReadOptions
from aioloader._loaders.putting import device_put


def check(x: int) -> Any:
    if x == 3:
        raise ValueError("no 3")
    return {"x": np.full(2, x, np.float32)}


def numbers(count: int = 6, **options: Any) -> Any:
    dataset = MapDataset.range(count).map(check).to_iter_dataset(ReadOptions(2, 4))
    return dataset.pipe(device_put, jax.devices()[0], **options)


def firsts(seen: list[Any]) -> list[Any]:
    return [x if isinstance(x, tuple) else int(x["x"][0]) for x in seen]


WHOLE = [0, 1, 2, ("ValueError", "no 3"), 4, 5]


@pytest.mark.parametrize("sizes", [(4, 2), (0, 0), (0, 1), (1, 0)])
def test_every_position_can_be_restored(sizes: tuple[int, int]) -> None:
    """However many are ready: what is delivered counts."""
    dataset = numbers(cpu_buffer_size=sizes[0], device_buffer_size=sizes[1])
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(next(iter(dataset))))
    states = []
    with iter(dataset) as iterator:
        for position in range(len(WHOLE) + 1):
            states.append(json.dumps(iterator.get_state()))
            assert firsts(walk(iterator, 1)) == WHOLE[position : position + 1]
        for position, state in enumerate(states):
            assert json.loads(state) == {"next_index": position}
            iterator.set_state(json.loads(state))
            assert firsts(walk(iterator, 2)) == WHOLE[position:][:2]
    with pytest.raises(ValueError, match="closed"):
        next(iterator)


@both_loops
def test_a_loop_is_not_blocked(loop: str) -> None:
    """While an element is being made the loop goes on; afterwards nothing is left."""
    made, go = threading.Event(), threading.Event()

    def slow(x: int) -> np.ndarray:
        made.set()
        assert go.wait(20)
        return np.full(2, x)

    async def main() -> None:
        dataset = MapDataset.range(3).map(slow).to_iter_dataset().pipe(device_put)
        async with aiter(dataset) as iterator:
            first = asyncio.ensure_future(anext(iterator))
            await until(made.is_set)
            assert not first.done()
            go.set()
            assert (await first).tolist() == [0, 0]
            assert iterator.get_state() == {"next_index": 1}

    run_on(loop, main())


def test_coroutines_and_plain_loops_go_together() -> None:
    """A plain `for` over coroutine functions is driven elsewhere, also inside a running loop."""

    async def later(x: int) -> np.ndarray:
        await asyncio.sleep(0)
        return np.full(2, x)

    dataset = MapDataset.range(4).map(later).to_iter_dataset().pipe(device_put)

    async def main() -> list[int]:
        return [int(x[0]) for x in dataset]

    assert asyncio.run(main()) == [0, 1, 2, 3]


def test_what_cannot_be_put_is_an_error_in_its_turn() -> None:
    """And what is behind it comes."""
    source: list[Any] = [np.ones(2), "text", np.zeros(2)]
    dataset = MapDataset.source(source).to_iter_dataset().pipe(device_put)
    iterator = iter(dataset)
    next(iterator)
    with pytest.raises(TypeError) as caught:
        next(iterator)
    assert "device_put was putting an element, of type str" in caught.value.__notes__[0]
    assert iterator.get_state() == {"next_index": 2}
    assert next(iterator).tolist() == [0, 0]
    iterator.close()


def test_wrong_arguments_are_named() -> None:
    """At once."""
    dataset = MapDataset.range(2)
    with pytest.raises(TypeError, match="ds must be an IterDataset"):
        device_put(dataset)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="device must be None"):
        device_put(dataset.to_iter_dataset(), "cpu")
    with pytest.raises(ValueError, match="cpu_buffer_size must be at least 0, got -1"):
        device_put(dataset.to_iter_dataset(), cpu_buffer_size=-1)
