"""Putting: arrays of a batch onto the device, by JAX's inner call where that does the same."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["put", "put_at_once"]

Put = Callable[[np.ndarray], jax.Array]

# Most of what `jax.device_put` does is for transformations and shardings, and takes six times as
# long as the call that it ends in. That one is no part of JAX's interface: it is asked for by
# name, and used only where it has been seen to give just what `device_put` gives.
_INNER = ("xla_client", "batched_device_put")
_PLAIN = frozenset("?bBhHiIefF")  # these mean the same whatever `jax_enable_x64` says


def put(arrays: Mapping[str, np.ndarray], target: Any) -> dict[str, jax.Array]:
    """Return what ``jax.device_put(arrays, target)`` does; asynchronous where that is.

    On the CPU the result may be the arrays' own memory.
    """
    placed = put_at_once(arrays) if target is None else None
    if placed is None:
        placed = jax.device_put(dict(arrays), target)
    return placed


def put_at_once(arrays: Mapping[str, np.ndarray]) -> dict[str, jax.Array] | None:
    """Put arrays onto the default device where that is the CPU; None where it cannot be so simple.

    No array is converted, and none is waited for.
    """
    inner = _inner()
    if inner is None or jax.config.jax_default_device is not None:  # type: ignore[attr-defined]
        return None
    placed = {}
    for name, array in arrays.items():
        if array.dtype.char not in _PLAIN:
            return None
        placed[name] = inner(array)
    return placed


@functools.cache
def _inner() -> Put | None:
    """Return a function that puts one array onto the default device, or None."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return None
    try:
        function: Any = functools.reduce(getattr, _INNER, importlib.import_module("jax._src.lib"))
        sharding, devices = jax.sharding.SingleDeviceSharding(device), [device]

        @functools.lru_cache(256)
        def aval(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
            return jax.core.ShapedArray(shape, dtype)

        def inner(array: np.ndarray) -> jax.Array:
            kind = aval(array.shape, array.dtype)
            placed: jax.Array = function(kind, sharding, [array], devices, False)
            return placed

        same = all(_is_same(inner(x), jax.device_put(x), x) for x in _examples())
    except Exception:  # another JAX, in which it is gone or asks for something else
        return None
    return inner if same else None


def _examples() -> list[np.ndarray]:
    raw = np.zeros(4096 + 64, "uint8")
    aligned = raw[-raw.ctypes.data % 64 :][:4096].view("float32").reshape(32, 32)
    return [aligned, np.arange(3, dtype="int32"), np.zeros((0, 2), "int8"), np.array(7, "uint16")]


def _is_same(one: Any, other: Any, example: np.ndarray) -> bool:
    shares = example.nbytes == 4096
    return (
        type(one) is type(other)
        and one.aval == other.aval
        and one.sharding == other.sharding
        and one.committed == other.committed
        and bool(np.array_equal(one, other))
        and (not shares or one.unsafe_buffer_pointer() == example.ctypes.data)
    )
