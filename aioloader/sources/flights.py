"""Flights: things that many ask for at once, and that are made once for all of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final
from weakref import WeakKeyDictionary

import anyio

from aioloader.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

__all__ = ["Flights", "another"]

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


@final
class Flights(Generic[K, V]):
    """Calls of a coroutine function, one for each key at a time on each event loop.

    Who asks first makes it, and the others wait, for an error, too; where the first is
    cancelled the next one does.

    Args:
        make: Called with a key.
        at_once: How many calls run at once, on one event loop.
    """

    def __init__(self, make: Callable[[K], Awaitable[V]], *, at_once: int) -> None:
        self._make = make
        self._at_once = at_once
        self._lanes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lane] = WeakKeyDictionary()

    async def get(self, key: K) -> V:
        """Return what is made of ``key``."""
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(loop)
        if lane is None:
            lane = self._lanes[loop] = _Lane(self._at_once)
        while (flight := lane.flights.get(key)) is not None:
            await flight.landed.wait()
            if flight.error is not None:
                raise another(flight.error)
            if flight.has_value:
                value: V = flight.value
                return value
        flight = lane.flights[key] = _Flight()
        try:
            async with lane.room:
                flight.value = value = await self._make(key)
            flight.has_value = True
        except Exception as error:
            flight.error = error
            raise
        else:
            return value
        finally:
            del lane.flights[key]
            flight.landed.set()


@final
class _Lane:
    """What is under way on one event loop."""

    def __init__(self, at_once: int) -> None:
        self.flights: dict[Any, _Flight] = {}
        self.room = anyio.Semaphore(at_once)


@final
class _Flight:
    """One that is being made, and then its value for those who waited."""

    def __init__(self) -> None:
        self.landed = anyio.Event()
        self.value: Any = None
        self.has_value = False
        self.error: Exception | None = None


def another(error: Exception) -> Exception:
    """Return an error for one more who waits: several tasks would mix their tracebacks in one."""
    return FetchError.again(error) if isinstance(error, FetchError) else error
