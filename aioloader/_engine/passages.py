"""Passages: batches that wait for nothing but workers, without a task for each."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, final

from aioloader._engine.explaining import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioloader._engine.conveyor import Settle
    from aioloader._engine.stages import Loaded, Stages
    from aioloader._executors.jobs import Job
    from aioloader._memory.arena import ArenaSlot
    from aioloader.protocols import Ticket

__all__ = ["WorkersOnly"]


@final
class WorkersOnly:
    """A batch that is filled by workers and placed on the loop, as soon as they have answered.

    ``settle`` is let go of before it is told of an error: it refers to the error by then, whose
    traceback refers to this, and such a circle is kept until the next garbage collection.
    """

    __slots__ = ("_items", "_job", "_settle", "_slot", "_stages", "_started", "_ticket")

    def __init__(self, stages: Stages, ticket: Ticket, slot: ArenaSlot, settle: Settle) -> None:
        self._stages = stages
        self._ticket = ticket
        self._slot = slot
        self._settle: Settle | None = settle
        self._items: Sequence[Any] = ()
        self._job: Job | None = None
        self._started = time.perf_counter()

    def begin(self, fill: Callable[..., Job | None]) -> bool:
        """Hand the batch to workers; returns False, and has done nothing, if `fill` could not."""
        error = self._begin(fill)
        if error is not None:
            self._end(None, error)
        return error is not None or self._job is not None

    def abandon(self) -> None:
        """Let go of it; the slot is the workers' until they are done with what they have begun."""
        if self._job is not None:
            self._job.abandon()
        self._job = self._settle = None

    def _begin(self, fill: Callable[..., Job | None]) -> Exception | None:
        ticket, slot = self._ticket, self._slot
        try:
            self._items = self._stages.feed.items(ticket)
            rows, seeds = range(ticket.rows), ticket.row_seeds
            self._job = fill(slot, rows, self._items, seeds, self._filled)
        except Exception as error:
            return explain(error, ticket, self._items)
        return None

    def _filled(self) -> None:
        loaded, error = self._outcome()
        self._end(loaded, error)

    def _end(self, loaded: Loaded | None, error: Exception | None) -> None:
        settle, self._settle = self._settle, None
        if settle is not None:
            settle(loaded, error)

    def _outcome(self) -> tuple[Loaded | None, Exception | None]:
        stage = "load"
        try:
            self._slot.extras = self._result()
            stage = "place"
            return self._place(), None
        except Exception as error:
            return None, explain(error, self._ticket, self._items, stage=stage)

    def _result(self) -> Any:
        job, self._job = self._job, None
        assert job is not None
        return self._stages.note(job.result(), self._started)

    def _place(self) -> Loaded:
        stages, ticket, slot, started = self._stages, self._ticket, self._slot, time.perf_counter()
        try:
            placed = stages.feed.place(ticket, slot, slot.extras)
        finally:
            stages.placed(started)
        return stages.finished(ticket, slot, placed)
