"""Holding: how many bytes of payloads are fetched, or about to be, and not yet in slots."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, final

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
        self._waiting: deque[asyncio.Future[None]] = deque()

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
                self._pending -= 1
                self._admit()

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
        if self._has_room() and not self._waiting:
            self._pending += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pending -= 1
                self._admit()
            else:
                with suppress(ValueError):  # its turn may have come after its cancellation
                    self._waiting.remove(turn)
            raise

    def _has_room(self) -> bool:
        # At first a few, as they may turn out to be large.
        expected = self._nbytes + (self._pending + 1) * (self._mean or _FIRST_GUESS)
        return expected <= self._most or (self._pending == 0 and self._nbytes == 0)

    def _admit(self) -> None:
        while self._waiting and self._has_room():
            turn = self._waiting.popleft()
            if not turn.done():
                self._pending += 1
                turn.set_result(None)
