"""`wait_ready`: waiting for JAX without blocking the loop."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anyio
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import both_loops, run_on

from aioloader import wait_ready

STEPS = 200


@jax.jit
def _long(x: jax.Array) -> jax.Array:
    """Compute for a few tenths of a second."""
    return jax.lax.fori_loop(0, STEPS, lambda i, c: jnp.tanh(c @ x) * 0.5, x)


def _matrix(seed: int) -> jax.Array:
    return jax.block_until_ready(jnp.full((400, 400), 1e-3 * (seed + 1)))


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    jax.block_until_ready(_long(_matrix(0)))


@both_loops
def test_the_loop_goes_on_while_a_computation_is_waited_for(loop: str) -> None:
    """What is returned is what was given, and its arrays are there."""

    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticker = asyncio.ensure_future(tick())
        first, second = _matrix(1), _matrix(2)
        started = time.perf_counter()
        tree = {"a": _long(first), "b": [_long(second), (3, None)]}
        dispatched = time.perf_counter() - started
        assert await wait_ready(tree) is tree
        seconds = time.perf_counter() - started
        assert all(x.is_ready() for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))
        ticker.cancel()
        assert dispatched < seconds / 2  # there was something to wait for
        assert ticks > seconds * 50

    run_on(loop, main())


async def test_what_is_ready_is_returned_at_once() -> None:
    """Without a turn of the loop, nor a thread."""
    array = _matrix(0)
    steps: list[int] = []
    asyncio.get_running_loop().call_soon(steps.append, 1)
    assert await wait_ready(array) is array
    assert steps == []


TREES: list[Any] = [
    None,
    [],
    {},
    5,
    "text",
    np.zeros(3),
    {"a": None, "b": [1, "x", np.ones(2)], "c": (object(),)},
    {"array": jnp.ones(3), "numpy": np.ones(3), "other": {1, 2}},
]


@pytest.mark.parametrize("tree", TREES, ids=[str(k) for k in range(len(TREES))])
async def test_what_is_no_array_of_jax_is_left_alone(tree: Any) -> None:
    """Trees of anything, with arrays among it or without."""
    assert await wait_ready(tree) is tree


async def test_random_keys_are_arrays_like_others() -> None:
    """A training state has them in it."""
    tree = {"key": jax.random.key(0), "keys": jax.random.split(jax.random.key(1), 3)}
    assert await wait_ready(tree) is tree


async def test_arrays_that_are_deleted_are_passed_over() -> None:
    """A state that was donated has nothing to wait for; the rest is waited for."""
    gone, there = jnp.ones(3), _long(_matrix(3))
    gone.delete()
    tree = [gone, there]
    assert await wait_ready(tree) is tree
    assert there.is_ready()
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = jnp.zeros(5)
    new = step(state)
    await wait_ready((state, new))
    assert new.tolist() == [1.0] * 5
    everything = jnp.ones(2)
    everything.delete()
    await wait_ready(everything)


async def test_waiting_can_be_cancelled_at_any_time() -> None:
    """The wait ends at once; the computation does not mind."""
    result = _long(_matrix(4))
    started = time.perf_counter()
    with anyio.move_on_after(0.01) as scope:
        await wait_ready(result)
    cancelled_after = time.perf_counter() - started
    jax.block_until_ready(result)
    assert scope.cancelled_caught
    assert cancelled_after < (time.perf_counter() - started) / 2
    assert await wait_ready(result) is result


async def test_many_may_wait_at_once() -> None:
    """Each gets its own back."""
    results = [_long(matrix) for matrix in [_matrix(0), _matrix(1), _matrix(2)]]
    waited = await asyncio.gather(*(wait_ready(result) for result in results))
    assert all(a is b for a, b in zip(waited, results, strict=True))
