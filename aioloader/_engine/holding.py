"""Holding: how many bytes of payloads are fetched, or about to be, and not yet in slots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from aioloader._fetching.line import Line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Held"]

_FIRST_GUESS = 1024 * 1024
_WEIGHT = 1 / 16


@final
class Held:
    """Bounds the bytes of payloads; what is under way counts with the mean of recent ones.

    Calls wait for their turn first come first served, and one is always let through, however
    large its payload is. Payloads count until they are in their slots.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._nbytes = 0
        self._pending = 0
        self._mean = 0.0  # of no payload yet
        self._line = Line()

    @property
    def nbytes(self) -> int:
        """The bytes of payloads that are held."""
        return self._nbytes

    def around(self, fetch: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        """Return ``fetch``, to be called when there is room for its payload."""

        async def bounded(item: Any) -> Any:
            await self._enter()
            try:
                return await fetch(item)
            finally:
                self._leave()

        return bounded

    def keep(self, nbytes: int) -> None:
        """Count a payload."""
        self._nbytes += nbytes
        self._mean += _WEIGHT * (nbytes - self._mean) if self._mean else nbytes

    def give_back(self, nbytes: int) -> None:
        """Count it no more."""
        self._nbytes -= nbytes
        self._admit()

    async def _enter(self) -> None:
        if self._has_room() and not self._line:
            self._pending += 1
        else:
            await self._line.wait(self._leave)

    def _leave(self) -> None:
        self._pending -= 1
        self._admit()

    def _has_room(self) -> bool:
        # At first a few, as they may turn out to be large.
        expected = self._nbytes + (self._pending + 1) * (self._mean or _FIRST_GUESS)
        return expected <= self._most or (self._pending == 0 and self._nbytes == 0)

    def _admit(self) -> None:
        while self._line and self._has_room():
            self._pending += 1
            self._line.serve()
