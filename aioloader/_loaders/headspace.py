"""Headspace: how fast the consumer could go if batches cost nothing."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Generic, Self, TypeVar, final

from aioloader._order.arguments import whole_number

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aioloader._loaders.batch import Batch

__all__ = ["Headspace"]

D = TypeVar("D")


@final
class Headspace(Generic[D]):
    """One batch, delivered again and again; an asynchronous iterator, to be used up once.

    The rates are those of whoever iterates: from the first batch until the next one after
    the last is asked for. They are 0.0 before that.
    """

    def __init__(self, peek: Callable[[], Awaitable[Callable[[], Batch[D]]]], batches: int) -> None:
        self._peek = peek
        self._left = self._batches = whole_number("batches", batches, at_least=1)
        self._make: Callable[[], Batch[D]] | None = None
        self._rows = 0
        self._started = self._seconds = 0.0

    def __repr__(self) -> str:
        return f"<Headspace: {self._batches} batches, {self.rows_per_second:.0f} rows/s>"

    @property
    def batches_per_second(self) -> float:
        """Batches consumed in a second."""
        return self._batches / self._seconds if self._seconds > 0 else 0.0

    @property
    def rows_per_second(self) -> float:
        """Rows consumed in a second."""
        return self._rows * self.batches_per_second

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch[D]:
        if self._left == 0:
            if self._make is not None:
                self._seconds, self._make = time.perf_counter() - self._started, None
            raise StopAsyncIteration
        if self._make is None:
            self._make = await self._peek()
            self._started = time.perf_counter()
        else:
            await asyncio.sleep(0)
        self._left -= 1
        batch = self._make()
        self._rows = len(batch.data)
        return batch
