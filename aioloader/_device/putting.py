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

__all__ = ["is_started", "prepare", "put", "put_at_once"]

Put = Callable[[np.ndarray], jax.Array]

# Most of what `jax.device_put` does is for transformations and shardings, and takes six times as
# long as the call that it ends in. That one is no part of JAX's interface: it is asked for by
# name, and used only where it has been seen to give what `device_put` is documented to.
_INNER = ("xla_client", "batched_device_put")

# Nor is this, and without it JAX counts as not started.
_STARTED = ("xla_bridge", "backends_are_initialized")
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


def is_started() -> bool:
    """Tell whether JAX has its devices: to start them may take seconds."""
    try:
        started: Any = functools.reduce(getattr, _STARTED, importlib.import_module("jax._src"))
        return bool(started())
    except Exception:  # another JAX, which does not tell
        return False


def prepare() -> None:
    """Find out how arrays can be put, which takes a millisecond once."""
    _inner()


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

        right = all(_is_right(inner(x), x, sharding) for x in _examples())
    except Exception:  # another JAX, in which it is gone or asks for something else
        return None
    return inner if right else None


def _examples() -> list[np.ndarray]:
    raw = np.zeros(4096 + 64, "uint8")
    aligned = raw[-_address(raw) % 64 :][:4096].view("float32").reshape(32, 32)
    return [aligned, np.arange(3, dtype="int32")]


def _is_right(placed: Any, array: np.ndarray, sharding: Any) -> bool:
    # What is documented of `device_put`. To call it as well would take as long as a first batch.
    shares = array.nbytes == 4096
    return (
        isinstance(placed, jax.Array)
        and placed.aval == jax.core.ShapedArray(array.shape, array.dtype)
        and placed.sharding == sharding
        and not placed.committed
        and np.asarray(placed).tobytes() == array.tobytes()
        and (not shares or placed.unsafe_buffer_pointer() == _address(array))
    )


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]  # `array.ctypes` takes ten times as long
    return address
