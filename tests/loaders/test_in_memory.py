"""Minibatches of arrays in memory: a sequence, in fifteen's order, gathered off the loop."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np
import pytest

from aioloader import InMemoryDataLoader, cycled_minibatches
from aioloader.protocols import DataLoaderProtocol

ON_LOOPS = ["asyncio", "uvloop"]
ORDERS = [
    (None, True, [[0, 1, 2, 3], [4, 5, 6, 7]]),
    (0, True, [[4, 6, 2, 7], [3, 5, 9, 0]]),
    (0, False, [[4, 6, 2, 7], [3, 5, 9, 0], [8, 1]]),
    (1, True, [[8, 4, 7, 0], [1, 2, 5, 9]]),
]


def dataset(kind: Any = np.asarray) -> dict[str, Any]:
    rows = np.arange(10)
    return {"x": kind(np.stack([rows, rows**2], 1).astype("float32")), "y": [kind(rows), (None,)]}


@pytest.mark.parametrize("kind", [np.asarray, jax.numpy.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize(("seed", "drop_last", "order"), ORDERS)
async def test_minibatches_are_the_samples_in_the_seeds_order(
    kind: Any, seed: int | None, drop_last: bool, order: list[list[int]]
) -> None:
    """By `for`, by `async for` and by index; leaves keep their kind, and None stays None."""
    loader = InMemoryDataLoader(dataset(kind), 4, drop_last)
    assert isinstance(loader, DataLoaderProtocol)
    minibatches = loader.minibatches(shuffle_seed=seed)
    assert isinstance(minibatches, Sequence)
    assert (loader.sample_count, loader.minibatch_count()) == (10, len(order))
    assert len(minibatches) == len(order)
    ways = [
        list(minibatches),
        [m async for m in minibatches],
        [minibatches[k] for k in range(len(order))],
        [minibatches[k - len(order)] for k in range(len(order))],
        list(minibatches[:]),
    ]
    for way in ways:
        assert [m["y"][0].tolist() for m in way] == order
        assert [m["x"][:, 1].tolist() for m in way] == [[n * n for n in row] for row in order]
        assert type(way[0]["x"]) is type(kind(0))
        assert way[0]["y"][1] == (None,)


def test_it_is_a_sequence() -> None:
    """Slices, steps, negative and out-of-range indices, reversal."""
    minibatches = InMemoryDataLoader(np.arange(10), 2).minibatches(0)
    whole = [m.tolist() for m in minibatches]
    assert [m.tolist() for m in minibatches[1:4]] == whole[1:4]
    assert [m.tolist() for m in minibatches[::-2]] == whole[::-2]
    assert [m.tolist() for m in reversed(minibatches)] == whole[::-1]
    assert len(minibatches[3:99]) == 2
    assert minibatches[1:4][-1].tolist() == whole[3]
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"minibatch {index} of 5"):
            minibatches[index]


def test_in_the_order_of_the_data_nothing_is_copied() -> None:
    data = np.arange(10)
    first, *_ = InMemoryDataLoader(data, 4).minibatches(None)
    assert np.shares_memory(first, data)


async def test_gathering_does_not_run_on_the_loop() -> None:
    class Noting(np.ndarray):
        threads: ClassVar[set[int]] = set()

        def __getitem__(self, key: Any) -> Any:
            Noting.threads.add(threading.get_ident())
            return super().__getitem__(key)

    loader = InMemoryDataLoader(np.arange(10).view(Noting), 4)
    assert len([m async for m in loader.minibatches(0)]) == 2
    assert Noting.threads
    assert threading.get_ident() not in Noting.threads


async def test_a_cancelled_wait_loses_nothing() -> None:
    minibatches = InMemoryDataLoader(np.arange(10), 2).minibatches(None).__aiter__()
    got = []
    for _ in range(5):
        waiting = asyncio.ensure_future(minibatches.__anext__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        got.append((await minibatches.__anext__() if waiting.cancelled() else waiting.result())[0])
    assert got == [0, 2, 4, 6, 8]


async def test_it_cycles() -> None:
    loader = InMemoryDataLoader(np.arange(10), 4)
    cycle = cycled_minibatches(loader, 0)
    assert [next(cycle).tolist() for _ in range(3)] == [*ORDERS[1][2], ORDERS[3][2][0]]
    cycle = cycled_minibatches(loader, 0)
    got = [(await anext(cycle)).tolist() for _ in range(3)]
    assert got == [*ORDERS[1][2], ORDERS[3][2][0]]


@jax.tree_util.register_pytree_node_class
class Custom:
    """A container that only JAX knows."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def tree_flatten(self) -> Any:
        return (self.inside,), None

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> Custom:
        return cls(*children)


def test_containers_registered_with_jax_are_containers() -> None:
    first, *_ = InMemoryDataLoader(Custom(np.arange(6)), 2).minibatches(None)
    assert isinstance(first, Custom)
    assert first.inside.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("data", "size", "error", "message"),
    [
        (
            {"a": np.arange(3), "b": np.arange(4)},
            2,
            ValueError,
            r"dataset\['a'\] has 3, and dataset\['b'\] has 4",
        ),
        ({"a": np.arange(3), "b": 5}, 2, ValueError, r"dataset\['b'\] has no first axis"),
        ({}, 2, ValueError, "holds no arrays"),
        (np.zeros((0, 3)), 2, ValueError, "empty"),
        (np.arange(3), 0, ValueError, "minibatch_size must be at least 1"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(
    data: Any, size: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        InMemoryDataLoader(data, size)


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        InMemoryDataLoader(np.arange(3), 2).minibatch_size = 5  # type: ignore[misc]
