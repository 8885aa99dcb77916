"""Jobs: what calls of `fill` have asked for, and the book of the chunks they were cut into."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final

from aioloader._executors import wire
from aioloader._executors.chunks import RowCost
from aioloader._executors.failures import Failure
from aioloader._executors.recipes import Columns
from aioloader.protocols import Filled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioloader._executors.parts import Part
    from aioloader.errors import ItemError

__all__ = ["Job", "Ledger", "Pending"]


class Span(Protocol):
    """Some rows of a job: positions from ``start`` to ``stop``."""

    start: int
    stop: int

    @property
    def rows(self) -> Sequence[int]:
        """Where in the slot they are."""


@final
class Job:
    """One `fill`: counts its chunks down, gathers what they return and how they fail.

    ``on_done`` is called once, after the last chunk.
    """

    def __init__(self, rows: int, on_done: Callable[[], object] | None = None) -> None:
        self.is_done = False
        self.abandoned = False
        self._on_done = on_done
        self._columns = Columns(rows)
        self._left = 0
        self._seconds = 0.0
        self._retries = 0
        self._errors: list[ItemError] = []
        self._deaths: dict[int, int] = {}

    async def wait(self) -> Filled:
        """Wait for all chunks; returns what was filled, or raises the first row's error.

        For one task. Where it is cancelled, the job is abandoned.
        """
        if not self.is_done:
            done = asyncio.get_running_loop().create_future()
            self._on_done = functools.partial(_answer, done)
            try:
                await done
            finally:
                if not self.is_done:
                    self.abandon()
        return self.result()

    def abandon(self) -> None:
        """Have no chunk of it sent any more, and tell nobody of its end."""
        self.abandoned, self._on_done = True, None

    def expect(self, chunks: int) -> None:
        """Wait for ``chunks`` chunks more."""
        self._left += chunks

    def finish(self, span: Span, filled: Filled) -> None:
        """Take the result of a chunk."""
        self._seconds += filled.seconds
        self._retries += filled.retries
        try:
            if filled.extras:
                self._columns.put_many(range(span.start, span.stop), filled.extras)
        except (TypeError, ValueError) as error:
            self.fail(Failure.capture(error).to_item_error(span.rows[0]))
        else:
            self._count_down()

    def fail(self, error: ItemError) -> None:
        """Take the failure of a chunk."""
        self._errors.append(error)
        self._count_down()

    def blame(self, row: int) -> int:
        """Count a worker's death while it was at ``row``; returns how many there were."""
        self._deaths[row] = self._deaths.get(row, 0) + 1
        return self._deaths[row]

    @property
    def error(self) -> ItemError | None:
        """The error of the first row that failed; where it is not raised it keeps no frames."""
        return min(self._errors, key=lambda error: error.row) if self._errors else None

    def result(self) -> Filled:
        """Return what was filled, or raise that error."""
        if self._errors:
            raise min(self._errors, key=lambda error: error.row)
        return Filled(self._columns.result(), self._seconds, self._retries)

    def _count_down(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.is_done = True
            on_done, self._on_done = self._on_done, None
            if on_done is not None:
                on_done()


def _answer(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


@final
@dataclass(slots=True, eq=False)
class Pending:
    """A chunk that is not acknowledged yet; ``hold`` keeps its slot on loan until it is."""

    job: Job
    number: int
    start: int
    stop: int
    part: Part
    message: wire.Message
    hold: object

    @property
    def rows(self) -> Sequence[int]:
        """The rows of the chunk."""
        return self.part.rows

    def close(self) -> None:
        """Let go of the slot and of the message."""
        self.hold = None
        self.message.close()


@final
class Ledger:
    """The book of all chunks: unsent, in order; under way; answered, but not read yet.

    Synchronous and without a loop: what happens to a chunk is decided here.
    """

    def __init__(self) -> None:
        self.row_cost = RowCost()
        self.under_way: dict[int, Pending] = {}
        self._answered: dict[int, Pending] = {}
        self.unsent: deque[Pending] = deque()
        self.broken: ItemError | None = None
        self._next_number = 0

    def __len__(self) -> int:
        return len(self.under_way) + len(self._answered) + len(self.unsent)

    def number(self) -> int:
        """Return a number for a new chunk."""
        self._next_number += 1
        return self._next_number

    def next_unsent(self) -> Pending | None:
        """Return the chunk to send next; those that nobody waits for are dropped."""
        while self.unsent:
            pending = self.unsent[0]
            if not pending.job.abandoned:
                return pending
            self.unsent.popleft().close()
        return None

    def sent(self, pending: Pending) -> None:
        """Note that the first unsent chunk is under way."""
        self.unsent.popleft()
        self.under_way[pending.number] = pending

    def answered(self, number: int) -> bool:
        """Note that a worker has answered for a chunk: it will not write again, nor run again.

        Returns False for a chunk that is not under way any more.
        """
        pending = self.under_way.pop(number, None)
        if pending is not None:
            self._answered[number] = pending
        return pending is not None

    def finish(self, number: int, filled: Filled) -> None:
        """Note that a chunk is filled; one that is not under way any more is ignored."""
        self.answered(number)
        pending = self._answered.pop(number, None)
        if pending is None:
            return
        self.row_cost.add(len(pending.rows), filled.seconds)
        pending.close()
        pending.job.finish(pending, filled)

    def fail(self, number: int, row: int | None, failure: Failure) -> None:
        """Note that a chunk failed at ``row``, or as a whole: then its rows go one by one."""
        self.answered(number)
        pending = self._answered.pop(number, None)
        if pending is None:
            return
        if row is None and len(pending.rows) > 1 and not pending.job.abandoned:
            self.unsent.extendleft(reversed(self._singles(pending)))
            return
        pending.job.fail(failure.to_item_error(pending.rows[0] if row is None else row))
        pending.close()

    def drop(self, pending: Pending, error: ItemError) -> None:
        """Give up a chunk that is under way: its job fails with ``error``."""
        del self.under_way[pending.number]
        pending.job.fail(error)
        pending.close()

    def split(self, pending: Pending) -> None:
        """Cut a chunk that is under way into rows, to find out which of them ends workers."""
        del self.under_way[pending.number]
        for single in self._singles(pending):
            self.under_way[single.number] = single

    def _singles(self, pending: Pending) -> list[Pending]:
        singles = []
        count = len(pending.rows)
        pending.job.expect(count - 1)
        for k in range(count):
            number, part = self.number(), pending.part.take(k, k + 1)
            start = pending.start + k
            message = wire.encode(part.flat(), number)
            single = Pending(pending.job, number, start, start + 1, part, message, pending.hold)
            singles.append(single)
        pending.close()
        return singles

    def requeue(self) -> None:
        """Put what is under way back in front of what is unsent: its workers are gone."""
        for number in sorted(self.under_way, reverse=True):
            self.unsent.appendleft(self.under_way.pop(number))

    def give_up(self, error: ItemError) -> None:
        """Fail every chunk, and refuse new ones: no worker will ever take them."""
        self.broken = error
        for pending in self._take_all():
            pending.job.fail(error)
            pending.close()

    def clear(self) -> None:
        """Drop every chunk; nobody waits for them."""
        for pending in self._take_all():
            pending.close()

    def _take_all(self) -> list[Any]:
        chunks = [*self._answered.values(), *self.under_way.values(), *self.unsent]
        self._answered.clear()
        self.under_way.clear()
        self.unsent.clear()
        return chunks
