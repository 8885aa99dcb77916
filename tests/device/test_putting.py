"""Putting: what JAX's inner call gives is what `jax.device_put` gives, or it is not used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pytest

from aioloader._device import putting
from aioloader._device.putting import put

if TYPE_CHECKING:
    from collections.abc import Iterator

DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32"]
OTHERS = ["int64", "uint64", "float64", "complex64", "bfloat16", "float8_e5m2", "int4"]
SHAPES = [(), (0,), (3,), (4, 0, 2), (32, 5, 7), (1000, 1000)]


@pytest.fixture(autouse=True)
def _asked_again() -> Iterator[None]:
    putting._inner.cache_clear()
    yield
    putting._inner.cache_clear()


def _array(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    numbers = np.arange(np.prod(shape, dtype=int)) % 100
    return numbers.reshape(shape).astype(jax.numpy.dtype(dtype))


def _is_same(one: Any, other: Any) -> bool:
    assert type(one) is type(other)
    assert (one.aval, one.sharding, one.committed) == (other.aval, other.sharding, other.committed)
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("dtype", DTYPES + OTHERS)
def test_it_gives_what_device_put_gives(dtype: str) -> None:
    """In type, shape, dtype, sharding and values; computations take it alike."""
    for shape in SHAPES:
        arrays = {"a": _array(shape, dtype), "b": np.ones(2, "float32")}
        placed, expected = put(arrays, None), jax.device_put(arrays)
        assert list(placed) == ["a", "b"]
        assert all(_is_same(placed[name], expected[name]) for name in arrays)
    double = jax.jit(lambda x: x + x)
    assert _is_same(double(put(arrays, None)["b"]), double(expected["b"]))


def test_the_inner_call_is_used_and_copies_nothing() -> None:
    """With the JAX that the tests run on; aligned arrays are the result's own memory."""
    assert putting._inner() is not None
    raw = np.zeros(4096 + 64, "uint8")
    aligned = raw[-raw.ctypes.data % 64 :][:4096]
    assert put({"a": aligned}, None)["a"].unsafe_buffer_pointer() == aligned.ctypes.data


def _gone(*arguments: Any, **options: Any) -> Any:
    raise TypeError("another signature")


@pytest.mark.parametrize("broken", ["no module", "no name", "signature", "committed", "values"])
def test_where_jax_is_another_device_put_itself_is_used(
    monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """What is not there, asks for something else or gives something else is left alone."""
    from jax._src.lib import xla_client

    real = xla_client.batched_device_put

    def other(aval: Any, sharding: Any, arrays: Any, devices: Any, committed: bool) -> Any:
        if broken == "values":
            arrays = [np.zeros_like(array) + 1 for array in arrays]
        return real(aval, sharding, arrays, devices, committed=True)

    if broken == "no module":
        monkeypatch.setattr(putting, "_INNER", ("nothing", "batched_device_put"))
    elif broken == "no name":
        monkeypatch.setattr(putting, "_INNER", ("xla_client", "nothing"))
    else:
        function = _gone if broken == "signature" else other
        monkeypatch.setattr(xla_client, "batched_device_put", function)
    assert putting._inner() is None
    monkeypatch.undo()
    assert put({"a": np.arange(3.0, dtype="float32")}, None)["a"].tolist() == [0.0, 1.0, 2.0]


def test_a_default_device_is_heeded() -> None:
    """One that the program, or the thread, has set."""
    device = jax.devices()[0]
    with jax.default_device(device):
        placed = put({"a": np.ones(3, "float32")}, None)
    assert placed["a"].devices() == {device}
    assert put({"a": np.ones(3, "float32")}, device)["a"].committed
