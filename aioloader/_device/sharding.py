"""Sharding: elements divided among several devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, final, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from aioloader._device.mapped import Mapped, SizedAsyncInputs, SizedMapped, mapped

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable

    from aioloader.protocols import SizedIterable

__all__ = ["sharding_map"]

T = TypeVar("T")
Devices: TypeAlias = Sequence[jax.Device] | Sharding

_spec: Callable[..., PartitionSpec] = PartitionSpec
_from_this_process: Callable[..., jax.Array] = jax.make_array_from_process_local_data


@overload
def sharding_map(
    inputs: SizedIterable[T] | SizedAsyncInputs[T], devices: Devices, *, pad: Literal[False] = False
) -> SizedMapped[T]: ...
@overload
def sharding_map(
    inputs: SizedIterable[T] | SizedAsyncInputs[T], devices: Devices, *, pad: Literal[True]
) -> SizedMapped[tuple[T, jax.Array]]: ...
@overload
def sharding_map(
    inputs: Iterable[T] | AsyncIterable[T], devices: Devices, *, pad: Literal[False] = False
) -> Mapped[T]: ...
@overload
def sharding_map(
    inputs: Iterable[T] | AsyncIterable[T], devices: Devices, *, pad: Literal[True]
) -> Mapped[tuple[T, jax.Array]]: ...
def sharding_map(inputs: Any, devices: Devices, *, pad: bool = False) -> Mapped[Any]:
    """Iterate over ``inputs`` with each element divided among devices.

    >>> import jax, numpy as np
    >>> devices = jax.devices()[:1]
    >>> (batch,) = sharding_map([{"x": np.ones((6, 2))}], devices)
    >>> batch["x"].shape  # (device_count, 6 // device_count, 2)
    (1, 6, 2)

    Over a sequence of devices, leaves ``(N, ...)`` become ``(device_count, N // device_count,
    ...)``, and index ``i`` of the leading axis is committed to device ``i``. With a
    `jax.sharding.Sharding` in place of the devices, leaves keep their shape:

    >>> from jax.sharding import Mesh, NamedSharding, PartitionSpec
    >>> rows = NamedSharding(Mesh(np.array(devices), "data"), PartitionSpec("data"))
    >>> (batch,) = sharding_map([{"x": np.ones((6, 2))}], rows)
    >>> batch["x"].shape, batch["x"].sharding == rows
    ((6, 2), True)

    Where that sharding has devices of several processes, each process brings its own part of
    each element, all of them parts of the same size, and the leaves are the global arrays:
    ``(process_count * N, ...)``, if the rows are divided among the processes.

    With ``pad=True`` every element, also one that needs no padding, becomes ``(tree, mask)``:
    rows of zeros are added until they can be divided, and ``mask``, of dtype bool, is true for
    the rows that were there, with the leading axis of the leaves (``(device_count, N //
    device_count)`` or ``(N,)``, padded) and sharded like it. So a mean over real rows is
    ``(loss * mask).sum() / mask.sum()``.

    Elements are divided one by one, when they are asked for; under `async for` in a thread.
    As for all else, what it returns is like what `prefetching_map` returns, and each may be
    the inputs of the other: ``prefetching_map(sharding_map(inputs, devices))`` divides elements
    ahead of use.

    Args:
        inputs: An iterable or an async iterable of pytrees of arrays. On JAX's CPU backend
            the result may be the input's own memory: do not write to it later.
        devices: Different devices of this process, or a sharding for every leaf.
        pad: Whether to add rows where they cannot be divided.

    Raises:
        TypeError: ``inputs`` cannot be iterated over, ``devices`` are none, or ``pad`` is not
            a bool.
        ValueError: ``devices`` are empty, occur twice, or belong to another process. While
            iterating: a leaf cannot be divided, or has no leading axis; it is named.
    """
    if not isinstance(pad, bool):
        raise TypeError(f"pad must be True or False, got {pad!r}")
    if isinstance(devices, Sharding):
        divider = _Divider(devices, None, pad)
    else:
        checked = _checked_devices(devices)
        rows = NamedSharding(Mesh(np.array(checked), "devices"), _spec("devices"))
        divider = _Divider(rows, len(checked), pad)
    return mapped("sharding_map", inputs, divider)


@final
@dataclass(frozen=True, slots=True)
class _Divider:
    """Divides an element; with ``stacks``, each part gets an index of a new leading axis."""

    sharding: Sharding
    stacks: int | None
    pads: bool

    def __call__(self, element: Any) -> Any:
        named, tree = jax.tree_util.tree_flatten_with_path(element)
        leaves = [(_name_of(path), leaf) for path, leaf in named]
        for name, leaf in leaves:
            self._check(name, leaf)
        if not self.pads:
            placed = self._placed([leaf for _, leaf in leaves], self.sharding)
            return jax.tree.unflatten(tree, placed)
        size = _common_size(leaves)
        target = max(self._padded_size(leaf.shape) for _, leaf in leaves)
        placed = self._placed([_padded(leaf, target) for _, leaf in leaves], self.sharding)
        (mask,) = self._placed([np.arange(target) < size], _of_rows(self.sharding))
        return jax.tree.unflatten(tree, placed), mask

    def _check(self, name: str, leaf: Any) -> None:
        shape: tuple[int, ...] = getattr(leaf, "shape", ())
        if not shape:
            raise ValueError(
                f"sharding_map: {name}, of type {type(leaf).__name__}, has no leading axis to "
                "divide among devices"
            )
        for axis, (size, parts) in enumerate(zip(shape, self._parts(name, shape), strict=True)):
            if size % parts and not (self.pads and axis == 0):
                raise ValueError(self._indivisible(name, shape, axis, parts))

    def _parts(self, name: str, shape: tuple[int, ...]) -> list[int]:
        """Return into how many parts each axis is divided, among the devices of this process."""
        if self.stacks is not None:
            return [self.stacks] + [1] * (len(shape) - 1)
        # No axis is divided into more parts than there are devices, nor unevenly into fewer.
        probe = (self.sharding.num_devices,) * len(shape)
        try:
            indices = self.sharding.addressable_devices_indices_map(probe).values()
        except (IndexError, ValueError) as error:
            what = f"sharding_map: {name} has the shape {shape}, and the sharding is for more axes"
            raise ValueError(f"{what}: {self.sharding}") from error
        return [len({str(index[axis]) for index in indices if index}) for axis in range(len(shape))]

    def _padded_size(self, shape: tuple[int, ...]) -> int:
        parts = self._parts("a leaf", shape)[0]
        return -(-shape[0] // parts) * parts

    def _indivisible(self, name: str, shape: tuple[int, ...], axis: int, parts: int) -> str:
        count = self.stacks or len(self.sharding.addressable_devices)
        among = f"{count} devices" if parts == count else f"{parts} parts, on {count} devices"
        what = f"{shape[0]} rows" if axis == 0 else f"size {shape[axis]} along axis {axis}"
        advice = ": drop some, or say pad=True" if axis == 0 else ""
        return (
            f"sharding_map: {name} has the shape {shape}, and its {what} cannot be divided "
            f"equally among {among}{advice}"
        )

    def _placed(self, leaves: list[Any], sharding: Sharding) -> list[jax.Array]:
        if self.stacks is not None:
            leaves = [self._stacked(leaf) for leaf in leaves]
        if sharding.is_fully_addressable:
            placed: list[jax.Array] = jax.device_put(leaves, sharding)
            return placed
        return [_from_this_process(sharding, np.asarray(leaf)) for leaf in leaves]

    def _stacked(self, leaf: Any) -> Any:
        assert self.stacks is not None
        return leaf.reshape(self.stacks, leaf.shape[0] // self.stacks, *leaf.shape[1:])


def _common_size(leaves: list[tuple[str, Any]]) -> int:
    if not leaves:
        raise ValueError("sharding_map: an element without leaves has no rows for a mask")
    first = leaves[0]
    for other in leaves:
        if other[1].shape[0] != first[1].shape[0]:
            raise ValueError(
                f"sharding_map: with pad=True all leaves must have as many rows, and {first[0]} "
                f"has {first[1].shape[0]}, {other[0]} {other[1].shape[0]}"
            )
    return int(first[1].shape[0])


def _padded(leaf: Any, target: int) -> Any:
    missing = target - leaf.shape[0]
    if missing == 0:
        return leaf
    pad: Any = jnp.pad if isinstance(leaf, jax.Array) else np.pad
    return pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1))


def _of_rows(sharding: Sharding) -> Sharding:
    """Return the sharding of what has only the leading axis."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, _spec(*sharding.spec[:1]))
    return sharding


def _name_of(path: Any) -> str:
    return f"leaf {jax.tree_util.keystr(path)}" if path else "the element"


def _checked_devices(devices: Any) -> list[jax.Device]:
    whole = isinstance(devices, Sequence) and not isinstance(devices, str)
    if not whole or not all(isinstance(device, jax.Device) for device in devices):
        raise TypeError(
            f"devices must be a sequence of jax.Device, or a jax.sharding.Sharding, got {devices!r}"
        )
    checked = list(devices)
    if not checked:
        raise ValueError(f"devices must not be empty, got {devices!r}")
    if len(set(checked)) < len(checked):
        raise ValueError(f"devices must be different ones, got {devices!r}")
    if any(device.process_index != jax.process_index() for device in checked):
        raise ValueError(
            f"devices must be this process's own, as jax.local_devices() are, got {devices!r}; "
            "a jax.sharding.Sharding may have those of other processes"
        )
    return checked
