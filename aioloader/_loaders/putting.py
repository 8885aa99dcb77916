"""Putting: the elements of a dataset on a device, ahead of their use, with a position to save."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from aioloader._datasets.foreign import opened
from aioloader._datasets.iter_dataset import IterDataset, StagedIterDataset
from aioloader._datasets.iterators import DatasetIterator
from aioloader._datasets.requests import InThread
from aioloader._device.mapped import mapped
from aioloader._device.prefetching import check_device, put
from aioloader._order.arguments import whole_number

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["device_put"]


def device_put(
    ds: IterDataset[Any],
    device: Any = None,
    *,
    cpu_buffer_size: int = 4,
    device_buffer_size: int = 2,
) -> IterDataset[Any]:
    """Return the same elements as `jax.Array`, put onto devices ahead of use by threads.

    >>> import jax, numpy as np
    >>> from aioloader import MapDataset
    >>> batches = MapDataset.source(np.arange(6)).batch(3).to_iter_dataset()
    >>> [type(batch).__name__ for batch in batches.pipe(device_put, jax.devices()[0])]
    ['ArrayImpl', 'ArrayImpl']

    Args:
        ds: The dataset; its elements are pytrees of arrays.
        device: As for `jax.device_put`: a device, a sharding, or a pytree of these; JAX's default
            device for None.
        cpu_buffer_size: How many elements may be ready beside those on devices.
        device_buffer_size: How many may be ready there beside the one in use.
    """
    if not isinstance(ds, IterDataset):
        raise TypeError(f"ds must be an IterDataset, got {ds!r}")
    check_device(device)
    sizes = (
        whole_number("cpu_buffer_size", cpu_buffer_size, at_least=0),
        whole_number("device_buffer_size", device_buffer_size, at_least=0),
    )
    return StagedIterDataset(_Putting(device, *sizes), ds)


@final
@dataclass(frozen=True)
class _Putting:
    """The parent's elements on a device."""

    device: Any
    cpu_room: int
    device_room: int

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over them."""
        (parent,) = parents
        return _PutIterator(parent, self)

    def __repr__(self) -> str:
        return f"pipe(device_put, {self.device})"


@final
class _Seal:
    """What travels with an element: the position behind it, and an error in its place."""

    __slots__ = ("error", "state")

    def __init__(self, state: dict[str, Any], error: Exception | None) -> None:
        self.state = state
        self.error = error


@final
class _Sealed:
    """The elements of an iterator, each with its seal; errors do not end it."""

    def __init__(self, inner: DatasetIterator[Any]) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[tuple[Any, _Seal]]:
        return self

    def __next__(self) -> tuple[Any, _Seal]:
        element, error = None, None
        try:
            element = next(self._inner)
        except StopIteration:
            raise
        except Exception as raised:
            error = raised
        try:
            return element, _Seal(self._inner.get_state(), error)
        finally:
            del error  # it would refer to itself


@final
class _PutIterator(DatasetIterator[Any]):
    """Takes what threads have put; another iterator of the parent's takes over elsewhere.

    Threads may be inside of the parent's iterator, which therefore is never moved.
    """

    _waits = _loop_safe = True

    def __init__(self, dataset: Any, stage: _Putting) -> None:
        super().__init__()
        self._dataset = dataset
        self._stage = stage
        self._inner = opened(dataset)
        self._dataset_options = self._inner._dataset_options
        self._position = self._inner.get_state()
        self._ready: Any = None

    async def _advance(self) -> Any:
        if self._ready is None:
            self._ready = self._begin()
        element, seal = await InThread(self._take)
        self._position = seal.state
        try:
            if seal.error is not None:
                raise seal.error
        finally:
            del seal  # the error would refer to itself
        return element

    def _take(self) -> tuple[Any, _Seal]:
        try:
            return next(self._ready)  # type: ignore[no-any-return]
        except StopIteration:
            raise StopAsyncIteration from None

    def _begin(self) -> Any:
        stage = self._stage
        elements = mapped("device_put", _Sealed(self._inner), None, stage.cpu_room)
        place = functools.partial(_placed, stage.device)
        return iter(mapped("device_put", elements, place, stage.device_room))

    def _leave(self) -> None:
        ready, self._ready = self._ready, None
        if ready is not None:
            ready.close()

    def get_state(self) -> dict[str, Any]:
        return self._position

    def set_state(self, state: dict[str, Any]) -> None:
        if self._ready is not None:
            self._leave()
            self._inner.close()
            self._inner = opened(self._dataset)
            self._inner._apply(self._dataset_options)
        self._inner.set_state(state)
        self._position = state

    def _apply(self, options: Any) -> None:
        super()._apply(options)
        self._inner._apply(options)

    def _start(self, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        if self._ready is None:
            self._inner.start_prefetch()

    def close(self) -> None:
        super().close()
        self._leave()
        self._inner.close()


def _placed(device: Any, sealed: tuple[Any, _Seal]) -> tuple[Any, _Seal]:
    element, seal = sealed
    if seal.error is None:
        try:
            element = put(device, element, "device_put")
        except Exception as error:
            element, seal = None, _Seal(seal.state, error)
    return element, seal
