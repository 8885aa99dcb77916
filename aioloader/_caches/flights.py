"""Flights: loads under way, one for each row, however many wait for it."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aioloader._caches.keeping import Kept
    from aioloader._caches.preloading import Verdict

__all__ = ["Flight", "Flights", "Landing"]

# The loads that this thread or task is in, of all caches: one may be another's provider.
_CURRENT: ContextVar[tuple[Flight, ...]] = ContextVar("aioloader_cache_loads", default=())


@final
@dataclass(frozen=True, slots=True)
class Landing:
    """How a load ended: with a value, with an error, or with neither when it was called off.

    ``nbytes`` is what a value is charged with, None where it cannot be kept.
    """

    kept: Kept | None = None
    nbytes: int | None = None
    error: BaseException | None = None


@final
class Flight:
    """One load under way. What it says changes under the lock of the cache.

    ``demanded`` is whether anybody but the preloading waits for it, ``begun`` whether a thread
    is at it that cannot be stopped, and ``verdict`` what became of its value.
    """

    __slots__ = (
        *("_cancel", "begun", "called_off", "demanded"),
        *("flights", "index", "landed", "verdict", "waiters"),
    )

    def __init__(self, index: int, flights: Flights) -> None:
        self.index = index
        self.flights = flights
        self.waiters = 0
        self.demanded = self.begun = self.called_off = False
        self.verdict: Verdict | None = None
        self.landed: Future[Landing] = Future()
        self.landed.set_running_or_notify_cancel()  # so that no waiter can cancel it
        self._cancel: Callable[[], object] | None = None

    def begin(self) -> bool:
        """Claim the load for this thread; False where it has been, or was called off."""
        if self.begun or self.called_off:
            return False
        self.begun = True
        return True

    def carry(self, cancel: Callable[[], object]) -> None:
        """Say how the load is called off."""
        self._cancel = cancel

    def call_off(self) -> None:
        """Call it off: nobody waits any more."""
        if self._cancel is not None:
            self._cancel()


@final
class Flights:
    """The loads under way. Not thread-safe: the cache that owns it has the lock."""

    def __init__(self) -> None:
        self._flights: dict[int, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, index: int) -> bool:
        return index in self._flights

    def board(self, index: int, *, demanded: bool) -> tuple[Flight, bool]:
        """Join the load of a row; returns it, and whether it has yet to be started."""
        flight = self._flights.get(index)
        is_new = flight is None
        if flight is None:
            flight = self._flights[index] = Flight(index, self)
        flight.waiters += 1
        flight.demanded |= demanded
        return flight, is_new

    def current(self, index: int) -> Flight | None:
        """Return the load of a row, where it is that load which asks."""
        for flight in _CURRENT.get():
            if flight.index == index and flight.flights is self:
                return flight
        return None

    @contextlib.contextmanager
    def aboard(self, flight: Flight) -> Iterator[None]:
        """Run what the load runs, so that `current` knows it."""
        token = _CURRENT.set((*_CURRENT.get(), flight))
        try:
            yield
        finally:
            _CURRENT.reset(token)

    def leave(self, flight: Flight) -> bool:
        """Wait no longer; returns whether the load is to be called off, outside the lock.

        A function that runs in a thread goes on: its value is kept, and whoever asks meanwhile
        joins it.
        """
        flight.waiters -= 1
        if flight.waiters or flight.begun or flight.landed.done():
            return False
        flight.called_off = True
        self.remove(flight)
        return True

    def remove(self, flight: Flight) -> None:
        """Forget a load that has ended."""
        if self._flights.get(flight.index) is flight:
            del self._flights[flight.index]
