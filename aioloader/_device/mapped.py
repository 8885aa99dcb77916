"""Mapped inputs: what both maps return, for `for` and for `async for`, sized or not."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, final

import jax

from aioloader._device.iterators import Direct, FromTask, FromThread, FromThreadAsync
from aioloader._device.sources import AsyncSource, Source
from aioloader._iterating import iterate

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Mapped", "SizedAsyncInputs", "SizedMapped", "mapped"]

T_co = TypeVar("T_co", covariant=True)


class SizedAsyncInputs(AsyncIterable[T_co], Sized, Protocol[T_co]):
    """An async iterable with a length."""


class Mapped(Iterable[T_co], AsyncIterable[T_co]):
    """Elements of ``inputs``, placed, with up to ``room`` of them ready ahead of use.

    It owns nothing: each iteration has a thread or a task of its own, and ends with it.
    """

    def __init__(
        self, name: str, inputs: Any, place: Callable[[Any], Any] | None, room: int
    ) -> None:
        self._name = name
        self._inputs = inputs
        self._place = place
        self._room = room
        self._is_iterable, self._is_async_iterable = _kinds_of(inputs)

    def __repr__(self) -> str:
        return f"<{self._name} of {self._inputs!r}>"

    def __iter__(self) -> Iterator[T_co]:
        if not self._is_iterable:
            return iterate(self.__aiter__, f"async for ... in {self._name}(...)")
        if self._room == 0:
            return Direct(Source(self._inputs, self._place or _as_it_is))
        return FromThread(self._source(), self._room, self._name)

    def __aiter__(self) -> AsyncIterator[T_co]:
        if not self._is_async_iterable:
            return FromThreadAsync(self._source(), self._room, self._name)
        place = self._place and functools.partial(_settled, self._place)
        make = functools.partial(AsyncSource[T_co], self._inputs, place)
        return FromTask(make, self._room, self._name)

    def _source(self) -> Source[T_co]:
        place = self._place and functools.partial(_settled, self._place)
        return Source(self._inputs, place or _as_it_is)


@final
class SizedMapped(Mapped[T_co]):
    """The same over inputs that have a length."""

    def __len__(self) -> int:
        return len(self._inputs)


def mapped(
    name: str, inputs: Any, place: Callable[[Any], Any] | None, room: int = 0
) -> Mapped[Any]:
    """Return the inputs mapped; what is wrong with them is a TypeError."""
    if not any(_kinds_of(inputs)):
        raise TypeError(f"inputs must be an iterable or an async iterable, got {inputs!r}")
    kind = SizedMapped if isinstance(inputs, Sized) else Mapped
    return kind(name, inputs, place, room)


def _kinds_of(inputs: object) -> tuple[bool, bool]:
    # What is mapped already can be iterated over in both ways, and one of them is made up.
    if isinstance(inputs, Mapped):
        return inputs._is_iterable, inputs._is_async_iterable
    return isinstance(inputs, Iterable), isinstance(inputs, AsyncIterable)


def _as_it_is(element: Any) -> Any:
    return element


def _settled(place: Callable[[Any], Any], element: Any) -> Any:
    """Place an element, and wait for transfers that may go on behind ``place``'s back.

    Only copies to accelerators, and to several devices, are not done when it returns.
    """
    placed = place(element)
    for leaf in jax.tree.leaves(placed):
        if isinstance(leaf, jax.Array) and not _is_there_at_once(leaf):
            leaf.block_until_ready()
    return placed


def _is_there_at_once(array: jax.Array) -> bool:
    return [device.platform for device in array.devices()] == ["cpu"]
