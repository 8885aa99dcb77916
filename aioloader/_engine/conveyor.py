"""The conveyor: ordered, bounded, cancellable work; one ticket in, one value out."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, final

import anyio

from aioloader._executors.later import later

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from anyio.abc import TaskGroup

__all__ = ["Conveyor", "Gate", "Outcome", "Permit"]

_FED_AT_ONCE = 8

K = TypeVar("K")
K_contra = TypeVar("K_contra", contravariant=True)
V = TypeVar("V")


class Permit(Protocol):
    """What a ticket needs before its work begins."""

    def release(self) -> None:
        """Give the permit back; harmless to repeat."""


class Gate(Protocol[K_contra]):
    """Where permits come from."""

    async def __call__(self, ticket: K_contra, /) -> Any: ...


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
    ) -> None:
        self._tickets = tickets
        self._work = work
        self._gate = gate
        self._draw = draw or _draw
        self._ordered = ordered
        self._belt: deque[Outcome[K, V]] = deque()
        self._group: TaskGroup | None = None
        self._feeding: anyio.CancelScope | None = None
        self._watching: list[asyncio.Future[bool]] = []
        self._begun: deque[Outcome[K, V]] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._exhausted = False
        self.loading = 0
        self.failure: Exception | None = None

    def __repr__(self) -> str:
        return f"<Conveyor: {self.loading} loading, {self.ready} ready>"

    async def __aenter__(self) -> Self:
        self._group = await anyio.create_task_group().__aenter__()
        self._feeding = anyio.CancelScope()
        self._group.start_soon(later(self._feed), self._group, self._feeding)
        return self

    async def __aexit__(self, *exc: object) -> None:
        # The body's own exception is not handed to the group: it belongs to the caller, and
        # must not come back wrapped in an ExceptionGroup.
        assert self._group is not None
        if self._feeding is not None:
            # A cancellation alone passes by who waits for what has just come: the feeder could
            # go on for ever with the permits of the jobs that are cancelled.
            self._feeding.cancel()
        self._group.cancel_scope.cancel()
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

    @property
    def ready(self) -> int:
        """How many outcomes are on the belt and done."""
        return sum(outcome.done for outcome in self._belt)

    @property
    def ended(self) -> bool:
        """Whether there is nothing on the belt and nothing more will come."""
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
        timer = None if timeout is None else loop.call_later(timeout, _settle, turn, False)
        try:
            return await turn
        finally:
            if timer is not None:
                timer.cancel()
            if turn in self._watching:  # late, or cancelled
                self._watching.remove(turn)

    def stop_feeding(self) -> None:
        """Begin no more tickets; those under way go on."""
        if self._feeding is not None:
            self._feeding.cancel()
            self._changed()

    async def _feed(self, group: TaskGroup, scope: anyio.CancelScope) -> None:
        # Permits are taken here, one ticket at a time, and never inside a job: were a later
        # ticket to take the last permit before an earlier one, an ordered belt would wait
        # for itself for ever.
        fed = 0
        try:
            with scope:
                while (ticket := await self._draw(self._tickets)) is not None:
                    permit = await self._gate(ticket)
                    if scope.cancel_called:  # nothing above may have waited, and noticed
                        permit.release()
                        break
                    outcome: Outcome[K, V] = Outcome(ticket, permit)
                    if self._ordered:
                        self._belt.append(outcome)
                    self.loading += 1
                    self._begin(group, outcome)
                    # While this waits for the next permit it must not hold the last batch.
                    del outcome, permit
                    fed += 1
                    if fed % _FED_AT_ONCE == 0:  # at first there is a permit for each of many
                        await asyncio.sleep(0)
        except Exception as error:  # in the tickets or the gate: no more will come
            self.failure = error
        finally:
            self._exhausted = True
            self._changed()

    def _begin(self, group: TaskGroup, outcome: Outcome[K, V]) -> None:
        # To start a task costs more than all else that is done here for a batch.
        self._begun.append(outcome)
        while self._idle:
            turn = self._idle.pop()
            if not turn.done():
                turn.set_result(None)
                return
        group.start_soon(later(self._serve))

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
            outcome.value = await self._work(outcome.ticket, outcome.permit)
        except Exception as error:
            outcome.error = error
            outcome.permit.release()
        except BaseException:
            outcome.permit.release()
            raise
        finally:
            self.loading -= 1
        outcome.done = True
        if not self._ordered:
            self._belt.append(outcome)
        self._changed()

    def _changed(self) -> None:
        watching, self._watching = self._watching, []
        for turn in watching:
            _settle(turn, True)


def _settle(turn: asyncio.Future[bool], result: bool) -> None:
    if not turn.done():
        turn.set_result(result)


async def _draw(tickets: Iterator[K]) -> K | None:
    return next(tickets, None)
