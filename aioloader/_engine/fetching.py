"""Fetching: payloads brought by coroutines on the loop, loaded by an executor meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Self, final

import anyio

from aioloader._engine.holding import Held
from aioloader._executors.arming import arm
from aioloader._executors.coroutines import Calls, Swarm
from aioloader._executors.later import later
from aioloader._executors.recipes import Columns
from aioloader._fetching.fetch import Fetch
from aioloader._fetching.payloads import payload_bytes
from aioloader.errors import ItemError
from aioloader.protocols import Executor, Filled, Slot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from anyio.abc import TaskGroup

from aioloader.protocols import take_seeds

__all__ = ["Fetched", "Fetcher"]

_SPARE = 2
_QUICK_SECONDS = 0.2e-3  # for a row: waiting for more of them then costs less than handing over
_GATHER_SECONDS = 4e-3
_WEIGHT = 1 / 8


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

    Rows of all batches share the limit, earlier batches first. A `Fetch` brings limits of its
    own, on requests and on bytes, and retries by itself. An async context manager.
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
        self._held: Held | None = None
        if isinstance(fetch, Fetch):
            # Items that wait for their next attempt must not keep others from their first.
            max_concurrency, retries = _SPARE * fetch.policy.concurrency, 0
            timeout = None  # in which the wait for room would count
            if fetch.policy.max_bytes is not None:
                self._held = Held(fetch.policy.max_bytes)
        self._fetch = arm(fetch, "fetch")
        self._executor = executor
        self._swarm = Swarm(max_concurrency)
        self._retries = retries
        self._timeout = timeout
        self._pace = _Pace()

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
        batch = _Batch(self._executor, slot, rows, seeds, self._held, self._pace)
        arguments = ((position, (item,)) for position, item in enumerate(items))
        fetch = self._fetch if self._held is None else self._held.around(self._fetch)
        calls = Calls(fetch, arguments, batch.take, retries=self._retries, timeout=self._timeout)
        try:
            async with anyio.create_task_group() as group:
                batch.group = group
                try:
                    await self._swarm.run(calls)
                except ItemError as error:
                    error.row = rows[error.row]
                    batch.errors.append(error)
                finished = time.perf_counter()
                batch.flush()
        finally:
            batch.end()
        return Fetched(batch.result(), calls.seconds, calls.retried, finished)


@final
class _Pace:
    """How long rows take to be loaded, and so how long payloads wait to be handed on together."""

    __slots__ = ("_row_seconds",)

    def __init__(self) -> None:
        self._row_seconds: float | None = None

    def note(self, rows: int, seconds: float) -> None:
        taken, known = seconds / rows, self._row_seconds
        self._row_seconds = taken if known is None else known + _WEIGHT * (taken - known)

    @property
    def delay(self) -> float:
        quick = self._row_seconds is not None and self._row_seconds < _QUICK_SECONDS
        return _GATHER_SECONDS if quick else 0.0


@final
class _Batch:
    """The payloads of one batch, handed on together when they came at about the same time.

    That is in one turn of the loop, or within milliseconds where loading takes less than
    handing on does. The last of a batch do not wait.
    """

    def __init__(
        self,
        executor: Executor,
        slot: Slot,
        rows: Sequence[int],
        seeds: Sequence[int | None],
        held: Held | None,
        pace: _Pace,
    ) -> None:
        self._executor = executor
        self._held = held
        self._pace = pace
        self._timer: asyncio.Handle | None = None
        self._slot = slot
        self._rows = rows
        self._seeds = seeds
        self._arrived: list[tuple[int, object]] = []
        self._nbytes = 0  # of those that arrived
        self._filling = 0  # of those on their way into the slot
        self._has_ended = False
        self._columns = Columns(len(rows))
        self._seconds = 0.0
        self._retries = 0
        self._loop = asyncio.get_running_loop()
        self.group: TaskGroup | None = None
        self.errors: list[ItemError] = []
        self._failure: Exception | None = None

    def take(self, position: int, payload: object) -> None:
        if self._has_ended:
            return
        if not self._arrived:
            delay = self._pace.delay
            if delay:
                self._timer = self._loop.call_later(delay, self.flush)
            else:
                self._timer = self._loop.call_soon(self.flush)
        self._arrived.append((position, payload))
        if self._held is not None:
            nbytes = payload_bytes(payload)
            self._nbytes += nbytes
            self._held.keep(nbytes)

    def flush(self) -> None:
        arrived, self._arrived = self._arrived, []
        nbytes, self._nbytes = self._nbytes, 0
        if arrived and self.group is not None and not self.group.cancel_scope.cancel_called:
            arrived.sort(key=lambda pair: pair[0])
            self._filling += nbytes
            self.group.start_soon(later(self._fill), arrived, nbytes)
        else:
            self._give_back(nbytes)

    def end(self) -> None:
        """Take no more payloads; what was held of them is given back."""
        self._has_ended = True
        if self._timer is not None:
            self._timer.cancel()  # it would keep the slot
        self._give_back(self._nbytes + self._filling)
        self._nbytes = self._filling = 0
        self._arrived.clear()

    def result(self) -> Filled:
        if self._failure is not None:
            raise self._failure
        if self.errors:
            raise min(self.errors, key=lambda error: error.row)
        return Filled(self._columns.result(), self._seconds, self._retries)

    def _give_back(self, nbytes: int) -> None:
        if self._held is not None and nbytes:
            self._held.give_back(nbytes)

    async def _fill(self, arrived: list[tuple[int, object]], nbytes: int) -> None:
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
        self._filling -= nbytes
        self._give_back(nbytes)
        self._pace.note(len(rows), filled.seconds)
        self._seconds += filled.seconds
        self._retries += filled.retries
        self._columns.put_many(positions, filled.extras)
