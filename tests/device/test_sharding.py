"""`sharding_map`: shapes, devices and masks, on four devices of the CPU."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from aioloader import prefetching_map, sharding_map

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# Each function of this program is a test, run in one process that has four devices.
PROGRAM = """
import asyncio, json, re, sys, traceback
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from aioloader import prefetching_map, sharding_map

devices = jax.devices()
line = Mesh(np.array(devices), "d")
square = Mesh(np.array(devices).reshape(2, 2), ("a", "b"))
rows = NamedSharding(line, P("d"))


def trees(*sizes):
    return [
        {"x": np.arange(n * 6, dtype="float32").reshape(n, 2, 3), "y": [np.arange(n)]}
        for n in sizes
    ]


async def collect(stream):
    return [element async for element in stream]


def both_ways(mapped):
    return list(mapped), asyncio.run(collect(mapped))


def message(inputs, devices, **options):
    try:
        list(sharding_map(inputs, devices, **options))
    except ValueError as error:
        return str(error)
    raise AssertionError("it was accepted")


def check_stacked(batch, tree):
    assert len(devices) == 4
    for array, leaf in ((batch["x"], tree["x"]), (batch["y"][0], tree["y"][0])):
        n, *rest = leaf.shape
        assert array.shape == (4, n // 4, *rest), array.shape
        assert (np.asarray(array).reshape(leaf.shape) == leaf).all()
        assert array.committed
        for shard in array.addressable_shards:
            index = devices.index(shard.device)
            assert shard.index[0] == slice(index, index + 1), (shard.index, shard.device)
            assert (np.asarray(shard.data)[0] == np.asarray(array)[index]).all()


def test_over_devices_each_gets_its_index():
    batches = trees(8, 4, 0)
    for got in both_ways(sharding_map(batches, devices)):
        for tree, batch in zip(batches, got, strict=True):
            check_stacked(batch, tree)


def test_the_devices_order_is_the_order():
    back = devices[::-1]
    (array,) = sharding_map([np.arange(4)], back)
    for shard in array.addressable_shards:
        assert back.index(shard.device) == int(shard.data[0, 0])
    (array,) = sharding_map([np.arange(6)], devices[1:3])
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert array.devices() == {*devices[1:3]}


def test_over_a_sharding_the_shape_stays():
    for sharding, parts in ((rows, (4, 1)), (NamedSharding(square, P("b", "a")), (2, 2)),
                            (NamedSharding(square, P(("a", "b"))), (4, 1)),
                            (NamedSharding(square, P(None, "b")), (1, 2)),
                            (NamedSharding(square, P()), (1, 1))):
        leaf = np.arange(32.0, dtype="float32").reshape(8, 4)
        (array,) = sharding_map([leaf], sharding)
        assert array.shape == (8, 4) and array.sharding == sharding
        assert (np.asarray(array) == leaf).all()
        shard = array.addressable_shards[0].data
        assert shard.shape == (8 // parts[0], 4 // parts[1]), (sharding, shard.shape)


def test_arrays_of_jax_are_divided_too():
    keys = jax.random.split(jax.random.key(0), 8)
    (batch,) = sharding_map([{"x": jax.numpy.arange(8), "key": keys}], devices)
    assert batch["x"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert batch["key"].shape == (4, 2)
    assert batch["key"].devices() == {*devices}


def test_sizes_that_cannot_be_divided_are_named():
    text = message(trees(8, 10), devices)
    assert "leaf ['x']" in text and "its 10 rows" in text and "4 devices" in text, text
    assert "pad=True" in text
    text = message([{"a": [np.zeros(4), np.zeros(5)]}], devices)
    assert "leaf ['a'][1]" in text and "its 5 rows" in text, text
    text = message([np.zeros((5, 2))], rows)
    assert "the element has the shape (5, 2)" in text and "4 devices" in text, text
    text = message([np.zeros((4, 3))], NamedSharding(square, P("a", "b")), pad=True)
    assert "size 3 along axis 1" in text and "2 parts, on 4 devices" in text, text
    text = message([np.zeros(4)], NamedSharding(square, P("a", "b")))
    assert "the element has the shape (4,)" in text and "more axes" in text, text


def test_what_has_no_rows_is_named():
    for target in (devices, rows):
        for leaf in (3.5, np.float32(1), np.zeros(()), "a", object()):
            kind = type(leaf).__name__
            text = message([{"x": np.zeros(4), "step": leaf}], target)
            assert "leaf ['step']" in text and kind in text and "no leading axis" in text, text


def test_the_elements_before_a_faulty_one_come():
    got = []
    try:
        for batch in sharding_map(trees(8, 4, 10), devices):
            got.append(batch["x"].shape[1])
    except ValueError:
        got.append("error")
    assert got == [2, 1, "error"]


def test_padding_comes_with_a_mask():
    batches = trees(8, 10, 1, 0)
    padded = sharding_map(batches, devices, pad=True)
    for inputs in (padded, prefetching_map(padded)):
        for tree, (batch, mask) in zip(batches, inputs, strict=True):
            n = len(tree["x"])
            each = -(-n // 4)
            assert batch["x"].shape == (4, each, 2, 3) and batch["y"][0].shape == (4, each)
            assert mask.shape == (4, each) and mask.dtype == bool
            assert mask.sharding == batch["y"][0].sharding
            flat = np.asarray(mask).ravel()
            assert flat.tolist() == [True] * n + [False] * (4 * each - n)
            x = np.asarray(batch["x"]).reshape(-1, 2, 3)
            assert (x[:n] == tree["x"]).all() and not x[n:].any()


def test_padding_keeps_the_shape_over_a_sharding():
    sharding = NamedSharding(square, P("a", "b"))
    ((array, mask),) = sharding_map([np.ones((5, 2), "bfloat16")], sharding, pad=True)
    assert array.shape == (6, 2) and array.sharding == sharding
    assert mask.tolist() == [True] * 5 + [False]
    assert mask.sharding == NamedSharding(square, P("a"))
    ((array, mask),) = sharding_map([jax.numpy.ones(5)], rows, pad=True)
    assert array.tolist() == [1] * 5 + [0] * 3 and array.sharding == mask.sharding == rows
    text = message([{"x": np.zeros(4), "y": np.zeros(5)}], devices, pad=True)
    assert "leaf ['x'] has 4" in text and "leaf ['y'] 5" in text, text
    assert "no rows" in message([{}], devices, pad=True)


def test_a_masked_mean_is_the_mean_of_the_real_rows():
    values = np.random.default_rng(0).normal(size=10).astype("float32")
    ((batch, mask),) = sharding_map([values], devices, pad=True)
    mean = jax.jit(lambda x, m: (x * m).sum() / m.sum())(batch, mask)
    assert abs(float(mean) - values.mean()) < 1e-6


def test_both_maps_compose():
    batches = trees(8, 4, 12)
    for mapped in (prefetching_map(sharding_map(batches, devices), buffer_size=2),
                   sharding_map(prefetching_map(batches, buffer_size=2), devices),
                   sharding_map(prefetching_map(batches, devices[0]), devices),
                   prefetching_map(sharding_map(batches, devices), None, 0)):
        assert len(mapped) == 3
        for got in both_ways(mapped):
            for tree, batch in zip(batches, got, strict=True):
                check_stacked(batch, tree)


def test_prefetching_puts_elements_onto_shardings():
    trees_ = trees(8, 4)
    everywhere = NamedSharding(line, P())
    target = {"x": rows, "y": everywhere}
    for size in (0, 2):
        for got in both_ways(prefetching_map(trees_, target, size)):
            for tree, batch in zip(trees_, got, strict=True):
                assert batch["x"].sharding == rows and batch["y"][0].sharding == everywhere
                assert (np.asarray(batch["x"]) == tree["x"]).all()
        (moved,) = prefetching_map([np.ones(3)], devices[2], size)
        assert moved.devices() == {devices[2]} and moved.committed


def test_copies_to_several_devices_are_waited_for_off_the_loop():
    import threading
    kind = type(jax.numpy.ones(1))
    waited, plain = [], kind.block_until_ready
    kind.block_until_ready = lambda self: waited.append(threading.current_thread()) or plain(self)
    try:
        asyncio.run(collect(prefetching_map(trees(8), rows)))
        asyncio.run(collect(sharding_map(trees(8), devices)))
        assert len(waited) == 4 and threading.current_thread() not in waited, waited
        asyncio.run(collect(prefetching_map(trees(8), devices[0])))  # which is no copy
        assert len(waited) == 4
    finally:
        kind.block_until_ready = plain


results = {}
for name, test in list(globals().items()):
    if name.startswith("test_"):
        try:
            test()
            results[name] = ""
        except BaseException:
            results[name] = traceback.format_exc()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """Run the program; returns what went wrong with each of its tests."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    results: dict[str, str] = json.loads(ran.stdout)
    return results


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", re.findall(r"^def (test_\w+)", PROGRAM, re.MULTILINE))
def test_on_four_devices(name: str, outcomes: dict[str, str]) -> None:
    """Each function of the program above."""
    assert outcomes[name] == "", outcomes[name]


# With the devices that there are -------------------------------------------------------------

ONE = SingleDeviceSharding(jax.devices()[0])
DEVICES = pytest.mark.parametrize("devices", [jax.devices()[:1], ONE], ids=["devices", "sharding"])


async def collect(stream: Any) -> list[Any]:
    return [element async for element in stream]


@DEVICES
async def test_elements_are_divided_one_by_one_and_in_order(devices: Any) -> None:
    """Nothing is drawn before it is asked for, with `for` and with `async for`."""
    drawn: list[int] = []

    def inputs() -> Iterator[Any]:
        for number in range(5):
            drawn.append(number)
            yield np.full(2, number)

    async def stream() -> AsyncIterator[Any]:
        for array in inputs():
            yield array

    got = []
    for array in sharding_map(inputs(), devices):
        assert drawn == [*range(len(got) + 1)]
        got.append(int(array.ravel()[0]))
    for kind in (inputs, stream):
        drawn.clear()
        async for array in sharding_map(kind(), devices):
            got.append(int(array.ravel()[0]))
            assert drawn == [*range(got[-1] + 1)]
    assert got == [0, 1, 2, 3, 4] * 3


@DEVICES
async def test_dividing_is_done_off_the_loop(devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `async for`."""
    put, threads = jax.device_put, []

    def recorded(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return put(*args)

    async def stream() -> AsyncIterator[Any]:
        yield np.ones(2)

    monkeypatch.setattr(jax, "device_put", recorded)
    await collect(sharding_map([np.ones(2)], devices))
    await collect(sharding_map(stream(), devices))
    assert len(threads) == 2
    assert threading.current_thread() not in threads


@DEVICES
def test_it_is_iterated_over_as_its_inputs_are(devices: Any) -> None:
    """A length if they have one, again if they can be, in a thread if they are async only."""

    async def stream() -> AsyncIterator[Any]:
        yield np.zeros(2)

    mapped = sharding_map([np.ones(2)] * 3, devices)
    assert len(mapped) == len(list(mapped)) == len(list(mapped)) == 3
    assert repr(mapped).startswith("<sharding_map of [array")
    assert not hasattr(sharding_map(iter([]), devices), "__len__")
    assert len(list(sharding_map(stream(), devices))) == 1
    assert len(list(prefetching_map(sharding_map(stream(), devices)))) == 1

    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"async for \.\.\. in sharding_map"):
            list(sharding_map(stream(), devices))

    asyncio.run(main())


def test_wrong_devices_are_refused_at_once() -> None:
    """With the parameter's name and the value."""
    device = jax.devices()[0]
    for wrong in (4, device, "cpu", ["cpu"], None, {device}):
        with pytest.raises(TypeError, match="devices must be a sequence"):
            sharding_map([], wrong)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"devices must not be empty, got \[\]"):
        sharding_map([], [])
    with pytest.raises(ValueError, match="devices must be different ones, got"):
        sharding_map([], [device, device])
    with pytest.raises(TypeError, match="pad must be True or False, got 1"):
        sharding_map([], [device], pad=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="inputs must be an iterable or an async iterable, got 5"):
        sharding_map(5, [device])  # type: ignore[call-overload]
