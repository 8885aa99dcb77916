"""Fetching: payloads brought by coroutines on the loop, loaded by an executor meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Self, final

import anyio

from aioloader._executors.coroutines import Calls, Swarm
from aioloader._executors.later import later
from aioloader._executors.recipes import Columns
from aioloader._faults import arm
from aioloader.errors import ItemError
from aioloader.protocols import Executor, Filled, Slot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from anyio.abc import TaskGroup

from aioloader.protocols import take_seeds

__all__ = ["Fetched", "Fetcher"]


@final
class Fetched:
    """What a `Fetcher` did for one batch: the filling, and when the last payload was there."""

    __slots__ = ("filled", "finished", "retries", "seconds")

    def __init__(self, filled: Filled, seconds: float, retries: int, finished: float) -> None:
        self.filled = filled
        self.seconds = seconds
        self.retries = retries
        self.finished = finished


@final
class Fetcher:
    """Call ``fetch(item)`` for rows, and give the payloads to the executor as they come.

    Rows of all batches share the limit, earlier batches first. An async context manager.
    """

    def __init__(
        self,
        fetch: Callable[[Any], Awaitable[Any]],
        executor: Executor,
        *,
        max_concurrency: int,
        retries: int,
        timeout: float | None,
    ) -> None:
        self._fetch = arm(fetch, "fetch")
        self._executor = executor
        self._swarm = Swarm(max_concurrency)
        self._retries = retries
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        await self._swarm.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._swarm.__aexit__(*exc)

    async def fill(
        self,
        slot: Slot,
        rows: Sequence[int],
        items: Sequence[object],
        seeds: Sequence[int | None],
    ) -> Fetched:
        """Fetch ``items`` and fill ``rows``; raises :class:`ItemError` for the first that fails."""
        batch = _Batch(self._executor, slot, rows, seeds)
        arguments = ((position, (item,)) for position, item in enumerate(items))
        calls = Calls(
            self._fetch, arguments, batch.take, retries=self._retries, timeout=self._timeout
        )
        async with anyio.create_task_group() as group:
            batch.group = group
            try:
                await self._swarm.run(calls)
            except ItemError as error:
                error.row = rows[error.row]
                batch.errors.append(error)
            finished = time.perf_counter()
            batch.flush()
        return Fetched(batch.result(), calls.seconds, calls.retried, finished)


@final
class _Batch:
    """The payloads of one batch, handed on together when they came in one turn of the loop."""

    def __init__(
        self, executor: Executor, slot: Slot, rows: Sequence[int], seeds: Sequence[int | None]
    ) -> None:
        self._executor = executor
        self._slot = slot
        self._rows = rows
        self._seeds = seeds
        self._arrived: list[tuple[int, object]] = []
        self._columns = Columns(len(rows))
        self._seconds = 0.0
        self._retries = 0
        self._loop = asyncio.get_running_loop()
        self.group: TaskGroup | None = None
        self.errors: list[ItemError] = []
        self._failure: Exception | None = None

    def take(self, position: int, payload: object) -> None:
        if not self._arrived:
            self._loop.call_soon(self.flush)
        self._arrived.append((position, payload))

    def flush(self) -> None:
        arrived, self._arrived = self._arrived, []
        if arrived and self.group is not None and not self.group.cancel_scope.cancel_called:
            arrived.sort(key=lambda pair: pair[0])
            self.group.start_soon(later(self._fill), arrived)

    def result(self) -> Filled:
        if self._failure is not None:
            raise self._failure
        if self.errors:
            raise min(self.errors, key=lambda error: error.row)
        return Filled(self._columns.result(), self._seconds, self._retries)

    async def _fill(self, arrived: list[tuple[int, object]]) -> None:
        positions = [position for position, _ in arrived]
        rows = [self._rows[position] for position in positions]
        seeds = take_seeds(self._seeds, positions)
        try:
            filled = await self._executor.fill(self._slot, rows, [p for _, p in arrived], seeds)
        except ItemError as error:
            self.errors.append(error)
            return
        except Exception as error:  # out of a task group it would come wrapped
            self._failure = error
            return
        self._seconds += filled.seconds
        self._retries += filled.retries
        self._columns.put_many(positions, filled.extras)
