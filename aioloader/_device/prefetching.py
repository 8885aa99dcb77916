"""Prefetching: the next elements drawn, and put onto a device, while one is in use."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Any, TypeVar, overload

import jax

from aioloader._device.mapped import Mapped, SizedAsyncInputs, SizedMapped, mapped

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable

    from aioloader.protocols import SizedIterable

__all__ = ["check_device", "prefetching_map", "put"]

T = TypeVar("T")


@overload
def prefetching_map(
    inputs: SizedIterable[T] | SizedAsyncInputs[T], device: Any = None, buffer_size: int = 2
) -> SizedMapped[T]: ...
@overload
def prefetching_map(
    inputs: Iterable[T] | AsyncIterable[T], device: Any = None, buffer_size: int = 2
) -> Mapped[T]: ...
def prefetching_map(inputs: Any, device: Any = None, buffer_size: int = 2) -> Mapped[Any]:
    """Iterate over ``inputs`` with the next elements ready, and on their device, ahead of use.

    >>> import jax, numpy as np
    >>> batches = [{"x": np.full((4, 2), k, "float32")} for k in range(3)]  # (batch, features)
    >>> ready = prefetching_map(batches, jax.devices()[0])
    >>> len(ready), [float(batch["x"].sum()) for batch in ready]
    (3, [0.0, 8.0, 16.0])

    What it returns is for `for` and for `async for`, has a length exactly if ``inputs`` has
    one, and may be iterated over as often as ``inputs`` may, several times at once, too. The
    order is that of ``inputs``. While an element is in use, up to ``buffer_size`` others are
    ready or being drawn, never more: a `Loader` whose batches are prefetched needs a ``depth``
    of ``buffer_size + 2``, so that one is loaded meanwhile.

    Async inputs are drawn by a task of the event loop, others by a thread, and elements are
    put onto devices in a thread; none of it blocks the loop. That ends soon after the iterator
    is dropped, as by `break`, and then closes the iterator of ``inputs``, unless that is
    ``inputs`` itself and no generator. A thread cannot be stopped inside of a call, though,
    and settings that JAX keeps for each thread, by `with jax.default_device(...)` and the
    like, do not hold there. `for` over inputs that are async only runs them on an event loop
    in a thread of its own.

    An exception of the inputs is raised in its turn; who asks again gets what is behind it,
    if the inputs go on. When `__anext__` is cancelled nothing is lost.

    Args:
        inputs: An iterable or an async iterable of pytrees. On JAX's CPU backend an array
            that is put onto the device may be the input's own memory: do not write to it later.
        device: Where to put elements: a `jax.Device`, a `jax.sharding.Sharding`, or a pytree
            of these, which may be a prefix of the elements. None leaves elements as they are.
        buffer_size: How many elements may be ready beside the one in use. 0 draws each when
            it is asked for. Where the body of an `async for` blocks the event loop, async
            inputs need 2 or more to be drawn meanwhile.

    Raises:
        TypeError: ``inputs`` cannot be iterated over, ``device`` is none, or ``buffer_size``
            is no whole number.
        ValueError: ``buffer_size`` is negative.
    """
    room = _checked_size(buffer_size)
    check_device(device)
    place = None if device is None else functools.partial(put, device)
    return mapped("prefetching_map", inputs, place, room)


def put(device: Any, element: Any, who: str = "prefetching_map") -> Any:
    """Put an element onto its device; an error says who did it."""
    try:
        return jax.device_put(element, device)
    except Exception as error:
        kind = type(element).__name__
        error.add_note(f"{who} was putting an element, of type {kind}, onto device={device}")
        raise


def check_device(device: Any) -> None:
    """Check that it is None, a device, a sharding, or a pytree of these."""
    targets: list[Any] = jax.tree.leaves(device)
    kinds = (jax.Device, jax.sharding.Sharding)
    wrong = [target for target in targets if not isinstance(target, kinds)]
    if wrong or (device is not None and not targets):
        raise TypeError(
            "device must be None, a jax.Device, a jax.sharding.Sharding, or a pytree of these, "
            f"got {device!r}"
        )


def _checked_size(buffer_size: Any) -> int:
    try:
        if isinstance(buffer_size, bool):
            raise TypeError
        size = operator.index(buffer_size)
    except TypeError:
        raise TypeError(f"buffer_size must be a whole number, got {buffer_size!r}") from None
    if size < 0:
        raise ValueError(f"buffer_size must be at least 0, got {size}")
    return size
