"""Parcels: runs of elements that go through a session together, and how long they should be."""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, final

from aioloader._datasets.worker_recipe import Order
from aioloader._engine.stages import Placed
from aioloader._executors.failures import Failure
from aioloader._memory.declaring import make_layouts
from aioloader._memory.layout import layout_bytes
from aioloader.protocols import Ticket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    import numpy as np

    from aioloader._datasets.worker_recipe import Made
    from aioloader._memory.arena import ArenaSlot
    from aioloader.protocols import Extras, Layouts

__all__ = ["SIZES", "Arrived", "Awaiting", "Pace", "Parcel", "ParcelFeed", "parcels", "size_for"]

_MIB = 1 << 20
_PARCEL_SECONDS = 4e-3
_PARCEL_BYTES = 4 * _MIB
_PARCEL_BYTES_AWAITED = 16 * _MIB
_MOST = 4096
_GROWTH = 4


def _sizes() -> tuple[Layouts, ...]:
    sizes = [_MIB * half << k >> 1 for k in range(16) for half in (2, 3)]
    return tuple(make_layouts({"bytes": ((n,), "uint8", "uint8")}, 1, "slot") for n in sizes)


SIZES = _sizes()
"""What slots may look like: plain bytes, from 1 MiB up."""


def size_for(nbytes: int, elements: int = 4, most: int = 4 * _MIB) -> int:
    """Return which of `SIZES` is right for parcels of ``elements`` so large, up to ``most`` bytes.

    >>> [layout_bytes(SIZES[size_for(n)]) >> 20 for n in (100, 1 << 19, 1 << 20, 100 << 20)]
    [1, 3, 6, 128]
    """
    wanted = min(elements * nbytes, max(nbytes, most)) * 10 // 9 + 4096
    fitting = (key for key, layouts in enumerate(SIZES) if layout_bytes(layouts) >= wanted)
    return next(fitting, len(SIZES) - 1)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Parcel(Ticket):
    """A run of elements: one row of a slot."""

    order: Order
    loop: asyncio.AbstractEventLoop | None

    @property
    def rows(self) -> int:
        """There is one row for all of them."""
        return 1

    def describe(self) -> str:
        """Name it as messages do."""
        if len(self.indices) == 1:
            return f"element {self.order.start}"
        return f"the elements from {self.order.start} to {self.order.stop - 1}"

    def describe_group(self) -> str:
        """There are no groups."""
        return ""


@final
class Pace:
    """How many elements a parcel should have, by what they have cost so far.

    Parcels take some milliseconds to make, and not too many bytes. Where elements have been
    awaited, ``at_least`` as many are to be under way.
    """

    def __init__(self, at_least: int = 1) -> None:
        self.key = 0  # of the slots that a new session should have
        self._at_least = at_least
        self._most_bytes = _PARCEL_BYTES if at_least == 1 else _PARCEL_BYTES_AWAITED
        self._seconds: float | None = None
        self._bytes = 0.0
        self._count = 1
        self._may_grow = True

    def count(self) -> int:
        """Return how many elements the next parcel should have."""
        if self._seconds is None:
            return 1
        by_bytes = min(self._room(), self._most_bytes) / max(self._bytes, 1)
        by_time = max(_PARCEL_SECONDS / max(self._seconds, 1e-9), self._at_least)
        return int(max(min(by_bytes, by_time, _GROWTH * self._count, _MOST), 1))

    def learn(self, made: Made, elements: int) -> None:
        """Take a parcel into account."""
        seconds, nbytes = made.seconds / elements, made.cargo.nbytes / elements
        if self._seconds is None:
            self._seconds, self._bytes = seconds, nbytes
        self._seconds += (seconds - self._seconds) / 4
        self._bytes += (nbytes - self._bytes) / (1 if nbytes > self._bytes else 4)
        self._count = max(self._count, min(elements, _MOST))
        tight = made.cargo.nbytes > layout_bytes(SIZES[self.key])
        fitting = self._room() / max(self._bytes, 1)
        scanty = fitting < max(_PARCEL_SECONDS / 2 / max(self._seconds, 1e-9), self._at_least)
        if self._may_grow and (tight or scanty):
            wanted = size_for(made.largest, max(self._at_least, 4), self._most_bytes)
            self.key = max(self.key, wanted)

    def _room(self) -> float:
        return layout_bytes(SIZES[self.key]) * 0.9

    def stop_growing(self, key: int) -> None:
        """Take it that there is no memory for larger slots: what does not fit goes beside them."""
        self.key, self._may_grow = key, False


def parcels(
    start: int,
    stop: int,
    skips: tuple[int, ...],
    pace: Pace,
    loop: asyncio.AbstractEventLoop | None = None,
    singles_until: int = 0,
) -> Iterator[Parcel]:
    """Yield the parcels from ``start`` on; up to ``singles_until`` each is of one element.

    ``loop`` is where their parts are awaited, if some are.
    """
    for position in count():
        if start >= stop:
            return
        length = 1 if start < singles_until else pace.count()
        indices = range(start, min(start + length, stop))
        order = Order(indices.start, indices.stop, skips)
        where = (position, False, 0, 0, position, position, position)
        yield Parcel(*where, indices, None, None, order, loop)
        start = indices.stop


@final
class Arrived:
    """A parcel as the session delivers it: still in its slot, which ``lease`` tells of."""

    __slots__ = ("lease", "made", "memory")

    def __init__(self, made: Made, memory: np.ndarray, lease: weakref.ref[Any]) -> None:
        self.made = made
        self.memory = memory
        self.lease = lease


@final
class ParcelFeed:
    """Orders and arrivals (see :class:`aioloader._engine.stages.Feed`)."""

    tickets_are_slow = False

    def __init__(self, key: int, *, is_plain: bool) -> None:
        self.key = key
        self._is_plain = is_plain

    def layout_key(self, ticket: Ticket) -> int:
        """Return the size that slots have at the moment."""
        return self.key

    def items(self, ticket: Ticket) -> Sequence[Any]:
        """Return the one order."""
        assert isinstance(ticket, Parcel)
        return (ticket.order if self._is_plain else (ticket.order, ticket.loop),)

    def items_are_quick(self, ticket: Ticket) -> bool:
        """It is at hand."""
        return True

    def place(self, ticket: Ticket, slot: ArenaSlot, extras: Extras) -> Placed:
        """Return the parcel as the array ``tree``."""
        made: Any = extras["made"][0]
        arrived = Arrived(made, slot.arrays["bytes"][0, ...], weakref.ref(slot.hold))
        return Placed({"tree": arrived}, slot.layouts)

    def place_is_quick(self, slot: ArenaSlot) -> bool:
        """Nothing is copied."""
        return True


@final
class Awaiting:
    """Awaits the parts of elements that workers cannot make, on the loop of the program.

    ``run`` bounds how many calls of the user's functions run at once.
    """

    def __init__(self, dataset: Any, places: Callable[[int], list[int]], run: Any) -> None:
        self._dataset = dataset
        self._places = places
        self._run = run

    async def __call__(self, item: tuple[Order, asyncio.AbstractEventLoop]) -> Order:
        """Return the order with its payloads, a `Failure` in the place of one that failed."""
        order, loop = item
        future = asyncio.run_coroutine_threadsafe(self._gather(order), loop)
        payloads: Any = await asyncio.wrap_future(future)
        return order._replace(payloads=payloads)

    async def _gather(self, order: Order) -> tuple[Any, ...]:
        wanted = range(order.start, order.stop)
        tasks = [asyncio.ensure_future(self._one(index)) for index in wanted]
        try:
            return tuple(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, index: int) -> list[Any] | Failure:
        try:
            places = self._places(index)
            if len(places) == 1:
                return [await self._dataset._aget(places[0], self._run)]
            parts: list[Awaitable[Any]] = [
                asyncio.ensure_future(self._dataset._aget(place, self._run)) for place in places
            ]
            return list(await asyncio.gather(*parts))
        except Exception as error:
            return Failure.capture(error)
