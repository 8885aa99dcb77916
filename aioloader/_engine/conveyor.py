"""The conveyor: ordered, bounded, cancellable work; one ticket in, one value out."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeAlias, TypeVar, final

import anyio

from aioloader._engine.alarm import Alarm, answer
from aioloader._executors.later import later

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from anyio.abc import TaskGroup

__all__ = ["Conveyor", "Gate", "Outcome", "Passage", "Permit", "Settle"]

_FED_AT_ONCE = 4

K = TypeVar("K")
K_contra = TypeVar("K_contra", contravariant=True)
V = TypeVar("V")


class Permit(Protocol):
    """What a ticket needs before its work begins."""

    def release(self) -> None:
        """Give the permit back; harmless to repeat."""


class Gate(Protocol[K_contra]):
    """Where permits come from."""

    def grant(self, ticket: K_contra, /) -> Any:
        """Return a permit, or None where there is none now."""

    async def wait(self) -> None:
        """Wait until it is worth to ask again."""


class Passage(Protocol):
    """Work under way that no task waits for."""

    def abandon(self) -> None:
        """Let go of everything, and never tell how the work ended."""


Settle: TypeAlias = "Callable[[Any, Exception | None], None]"


@final
class Outcome(Generic[K, V]):
    """The place on the belt where one ticket's value or error appears."""

    __slots__ = ("done", "error", "permit", "ticket", "value")

    def __init__(self, ticket: K, permit: Permit) -> None:
        self.ticket = ticket
        self.permit = permit
        self.done = False
        self.value: V | None = None
        self.error: BaseException | None = None


@final
class Conveyor(Generic[K, V]):
    """Run ``work(ticket, permit)`` for each ticket and keep the outcomes on a belt.

    ``draw`` takes the next ticket, where that should not be done on the event loop.
    ``begin(ticket, permit, settle)`` begins work that needs no task, and ``settle(value, error)``
    ends it; where it returns None the work is done as any other.

    A ticket begins once the gate has granted it a permit, in ticket order; the value owns
    that permit from then on. An async context manager, to be entered and left by one task;
    the belt may be read from any other. Reading is synchronous: `take` what is there, or
    wait for `changed`. A reader that is cancelled while it waits has therefore taken nothing.
    """

    def __init__(
        self,
        tickets: Iterator[K],
        work: Callable[[K, Any], Awaitable[V]],
        *,
        gate: Gate[K],
        ordered: bool = True,
        draw: Callable[[Iterator[K]], Awaitable[K | None]] | None = None,
        begin: Callable[[K, Any, Settle], Passage | None] | None = None,
    ) -> None:
        self._tickets = tickets
        self._ticket: Any = None  # drawn, and without a permit yet
        self._work = work
        self._gate = gate
        self._draw = draw
        self._shortcut = begin
        self._ordered = ordered
        self._belt: deque[Outcome[K, V]] = deque()
        self._group: TaskGroup | None = None
        self._feeding: anyio.CancelScope | None = None
        self._watching: list[asyncio.Future[bool]] = []
        self._alarm = Alarm()
        self._begun: deque[Outcome[K, V]] = deque()
        self._passages: dict[Outcome[K, V], Passage] = {}
        self._idle: list[asyncio.Future[None]] = []
        self._exhausted = self._stopping = False
        self.loading = 0
        self.failure: BaseException | None = None

    def __repr__(self) -> str:
        return f"<Conveyor: {self.loading} loading, {self.ready} ready>"

    async def __aenter__(self) -> Self:
        self._group = await anyio.create_task_group().__aenter__()
        self._feeding = anyio.CancelScope()
        self._group.start_soon(later(self._feed), self._feeding)
        return self

    async def __aexit__(self, *exc: object) -> None:
        # The body's own exception is not handed to the group: it belongs to the caller, and
        # must not come back wrapped in an ExceptionGroup.
        assert self._group is not None
        if self._feeding is not None:
            # A cancellation alone passes by who waits for what has just come: the feeder could
            # go on for ever with the permits of the jobs that are cancelled.
            self._stopping = True
            self._feeding.cancel()
        self._group.cancel_scope.cancel()
        for outcome, passage in self._passages.items():
            passage.abandon()
            outcome.permit.release()
            self.loading -= 1
        self._passages.clear()
        try:
            await self._group.__aexit__(None, None, None)
        finally:
            self._exhausted = True
            for outcome in self._belt:
                outcome.value = None
                outcome.permit.release()
            self._belt.clear()
            self._begun.clear()
            self._changed()
            self._alarm.close()

    @property
    def ready(self) -> int:
        """How many outcomes are on the belt and done."""
        return sum(outcome.done for outcome in self._belt)

    @property
    def ended(self) -> bool:
        """Whether there is nothing on the belt and nothing more will come."""
        if self.failure is not None and not isinstance(self.failure, Exception):
            return True  # as of Ctrl-C, inside any statement: what was being begun may never end
        return self._exhausted and not self._belt and self.loading == 0

    def take(self) -> Outcome[K, V] | None:
        """Take the next outcome off the belt, or return None if it is not there yet."""
        if self._belt and self._belt[0].done:
            return self._belt.popleft()
        return None

    def peek(self) -> Outcome[K, V] | None:
        """Return what `take` would, and leave it there."""
        return self._belt[0] if self._belt and self._belt[0].done else None

    async def changed(self, timeout: float | None = None) -> bool:
        """Wait until something happens on the belt; returns False after ``timeout`` seconds."""
        # By hand: an event and a cancel scope of anyio cost more than all that `take` does.
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        self._watching.append(turn)
        if timeout is not None:
            self._alarm.set(turn, timeout)
        try:
            return await turn
        finally:
            self._alarm.forget(turn)
            if turn in self._watching:  # late, or cancelled
                self._watching.remove(turn)

    def stop_feeding(self) -> None:
        """Begin no more tickets; those under way go on."""
        if self._feeding is not None:
            self._stopping = True
            self._feeding.cancel()
            self._changed()

    def feed(self) -> None:
        """Begin what can begin at once, a few tickets at most, without a turn of the loop."""
        scope = self._feeding
        if self._draw is None and scope is not None:
            try:
                self._feed_now()
            finally:
                if self._exhausted:
                    scope.cancel()  # the feeder waits for a permit, and has no ticket

    async def _feed(self, scope: anyio.CancelScope) -> None:
        # Permits are taken here and in `feed`, one ticket at a time, and never inside a job: were
        # a later ticket to take the last permit before an earlier one, an ordered belt would
        # wait for itself for ever.
        try:
            with scope:
                while not self._exhausted:
                    if self._draw is not None and self._ticket is None:
                        self._ticket = await self._draw(self._tickets)
                        self._exhausted = self._ticket is None
                    if self._feed_now():  # at first there is a permit for each of many
                        await asyncio.sleep(0)
                    else:
                        await self._gate.wait()
        except Exception as error:  # in the gate: no more will come
            self.failure = self.failure or error
        finally:
            self._exhausted = True
            self._changed()

    def _feed_now(self) -> bool:
        """Begin a few tickets; returns False where the next one has to wait for a permit."""
        try:
            for _ in range(_FED_AT_ONCE):
                if self._exhausted or self._stopping:
                    break
                if self._ticket is None and (self._draw is not None or not self._draw_now()):
                    break
                permit = self._gate.grant(self._ticket)
                if permit is None:
                    return False
                self._begin(permit)
        except BaseException as error:  # in the tickets or the gate: no more will come
            self.failure, self._exhausted = error, True
            self._changed()
            if not isinstance(error, Exception):
                raise
        return True

    def _draw_now(self) -> bool:
        self._ticket = next(self._tickets, None)
        self._exhausted = self._ticket is None
        return not self._exhausted

    def _begin(self, permit: Any) -> None:
        outcome: Outcome[K, V] = Outcome(self._ticket, permit)
        self._ticket = None
        if self._ordered:
            self._belt.append(outcome)
        self.loading += 1
        if self._shortcut is not None:
            settle = functools.partial(self._settle, outcome)
            passage = self._shortcut(outcome.ticket, permit, settle)
            if passage is not None:
                if not outcome.done:
                    self._passages[outcome] = passage
                return
        # To start a task costs more than all else that is done here for a batch.
        self._begun.append(outcome)
        while self._idle:
            turn = self._idle.pop()
            if not turn.done():
                turn.set_result(None)
                return
        assert self._group is not None
        self._group.start_soon(later(self._serve))

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while self._begun:
                await self._run(self._begun.popleft())
            turn: asyncio.Future[None] = loop.create_future()
            self._idle.append(turn)
            await turn

    async def _run(self, outcome: Outcome[K, V]) -> None:
        try:
            value = await self._work(outcome.ticket, outcome.permit)
        except Exception as error:
            self._settle(outcome, None, error)
        except BaseException:
            outcome.permit.release()
            self.loading -= 1
            raise
        else:
            self._settle(outcome, value, None)

    def _settle(self, outcome: Outcome[K, V], value: V | None, error: Exception | None) -> None:
        self._passages.pop(outcome, None)
        outcome.value, outcome.error, outcome.done = value, error, True
        if error is not None:
            outcome.permit.release()
        self.loading -= 1
        if not self._ordered:
            self._belt.append(outcome)
        self._changed()

    def _changed(self) -> None:
        watching, self._watching = self._watching, []
        for turn in watching:
            answer(turn, True)
