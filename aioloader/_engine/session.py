"""The session: one run of tickets through lease, fetch, fill, store, place and delivery."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, final

import anyio

from aioloader._audit import SessionAudit
from aioloader._engine.conveyor import Conveyor, Outcome
from aioloader._engine.fetching import Fetcher
from aioloader._engine.stages import Loaded, SessionSpec, Stages
from aioloader._engine.statistics import Meter
from aioloader._executors.finishing import finish, told_once
from aioloader._executors.limits import refusal
from aioloader._memory.arena import PAGE, Arena, ArenaSlot, slot_bytes
from aioloader._memory.segment import SharedSegment

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from aioloader._engine.stages import Feed
    from aioloader.protocols import Layouts, Segment, Ticket

__all__ = ["Loan", "Session"]

T = TypeVar("T")

# anyio imports what it needs of asyncio when it is first used. That takes as long as all else
# before a first batch, and blocks the event loop meanwhile.
with contextlib.suppress(ImportError):
    importlib.import_module("anyio._backends._asyncio")


@final
@dataclass(frozen=True, slots=True)
class Loan:
    """A slot whose batch has been delivered and that something still reads."""

    ticket: Ticket
    seconds: float


@final
class Session:
    """Drive tickets through slots, in one task of its own.

    Owns the arena, the executor, a helper thread and the task; `aclose` gives them back in
    reverse order, and may be called from any task of the loop. The task exists so that a
    session may be opened in one task, read in others and closed in yet another.
    """

    def __init__(self, spec: SessionSpec, tickets: Iterator[Ticket]) -> None:
        self._spec = spec
        self._tickets = tickets
        self._segment: Segment | None = None
        self._arena: Arena | None = None
        self._outgrown: list[Arena] = []
        self._helping: asyncio.Future[Any] | None = None  # what must end before the memory does
        self._stages: Stages | None = None
        self._conveyor: Conveyor[Ticket, Loaded] | None = None
        self._driver: asyncio.Task[None] | None = None
        self._opened = anyio.Event()
        self._again = anyio.Event()
        self._closing = False
        self._loans: dict[int, tuple[Ticket, float | None]] = {}
        self.meter = Meter()

    def __repr__(self) -> str:
        return f"<Session: {self._conveyor!r}, {self._arena!r}>"

    # Opening and closing ------------------------------------------------------------------------

    async def open(self) -> None:
        """Reserve the memory, start the executor, and begin with the first tickets."""
        self._loop = asyncio.get_running_loop()
        self._audit = SessionAudit.begin()
        self._helper = ThreadPoolExecutor(1, "aioloader-helper")
        # Looking items up must not wait for a batch that is being placed.
        self._lookup = ThreadPoolExecutor(1, "aioloader-lookup")
        spec = self._spec
        try:
            self._segment = spec.executor.allocate(slot_bytes(spec.layouts) * spec.depth)
            reserve = getattr(self._segment, "reserve", None)
            if reserve is not None:  # while the executor starts, which has no use for slots yet
                self._help(reserve)
            self._arena = Arena(
                self._segment, depth=spec.depth, layouts=spec.layouts, reclaim=spec.reclaim
            )
            self._driver = asyncio.create_task(told_once(self._drive), name="aioloader-session")
            self._driver.add_done_callback(lambda _: self._opened.set())
            await self._opened.wait()
            if self._driver.done():
                self._driver.result()
        except BaseException:
            await self.aclose()
            raise

    def _help(self, function: Callable[[], object]) -> asyncio.Future[Any]:
        """Call a function in the helper thread; memory is not given back before it ends."""
        try:
            self._helping = self._loop.run_in_executor(self._helper, function)
        except RuntimeError as error:  # can't start new thread
            raise refusal(errno.EAGAIN, "the loader's threads") from error
        return self._helping

    async def aclose(self) -> None:
        """End everything the session owns, in bounded time; harmless to repeat."""
        if self._closing:
            return
        self._closing = True
        self._again.set()
        try:
            if self._driver is not None:
                await finish(asyncio.gather(self._driver, return_exceptions=True))
            if self._helping is not None:
                await finish(asyncio.gather(self._helping, return_exceptions=True))
        finally:
            for arena in self._outgrown:
                arena.close()
            owner = self._arena or self._segment
            if owner is not None:
                owner.close()
            for threads in (self._helper, self._lookup):
                threads.shutdown(wait=False, cancel_futures=True)
            if self._audit is not None:
                await self._audit.end(self._spec.reclaim, self._kept)
        if self._driver is not None and not self._driver.cancelled():
            self._driver.result()

    def _kept(self) -> list[str]:
        return [loan.ticket.describe() for loan in self.loans()]

    def restart(self, tickets: Iterator[Ticket]) -> None:
        """Drop what is under way and go on with other tickets; workers and memory stay."""
        self._tickets = tickets
        self._conveyor = None
        self._opened = anyio.Event()
        self._again.set()

    async def enlarge(self, layouts: tuple[Layouts, ...]) -> None:
        """Lend slots of other layouts from now on; workers stay, and what is under way goes on.

        The executor has to know the layouts already, and to share its memory with processes.
        When this returns, the feed may ask for the new layouts. Raises :class:`MemoryError`
        where there is no room; then nothing has changed.
        """
        segment, depth = self._segment, self._spec.depth
        assert isinstance(segment, SharedSegment)

        def grow() -> int:
            base = -(-segment.nbytes // PAGE) * PAGE
            segment.grow(base + slot_bytes(layouts) * depth)
            return base

        base = await finish(self._help(grow))
        assert self._arena is not None
        self._outgrown.append(self._arena)
        self._loans.clear()  # what is still on loan there has the same numbers
        self._arena = Arena(
            segment, depth=depth, layouts=layouts, reclaim=self._spec.reclaim, base=base
        )

    def stop_feeding(self) -> None:
        """Begin no more tickets; callable from any thread, and from a signal handler."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._stop_feeding)

    def _stop_feeding(self) -> None:
        if self._conveyor is not None:
            self._conveyor.stop_feeding()

    async def _drive(self) -> None:
        spec = self._spec
        async with AsyncExitStack() as owned:
            executor = await owned.enter_async_context(spec.executor)
            if self._helping is not None:
                await finish(self._helping)
            if spec.prepare is not None:
                await finish(self._help(spec.prepare))
            self._stages = Stages(spec, self.meter, self._helper, self._lookup)
            if spec.fetch is not None:
                fetcher = Fetcher(
                    spec.fetch,
                    executor,
                    max_concurrency=spec.max_concurrency,
                    retries=spec.retries,
                    timeout=spec.item_timeout,
                )
                self._stages.fetcher = await owned.enter_async_context(fetcher)
            while not self._closing:
                self._again = anyio.Event()
                belt = Conveyor(
                    self._tickets,
                    self._stages,
                    gate=self,
                    ordered=spec.ordered,
                    draw=self._draw if spec.feed.tickets_are_slow else None,
                    begin=self._stages.begin,
                )
                async with belt as self._conveyor:
                    self._opened.set()
                    await self._again.wait()

    # Reading --------------------------------------------------------------------------------------

    def take(self) -> Outcome[Ticket, Loaded] | None:
        """Take the next outcome if it is there; synchronous, so that none can be lost."""
        outcome = None if self._conveyor is None else self._conveyor.take()
        if outcome is not None and outcome.value is not None:
            loaded = outcome.value
            index: int = outcome.permit.index  # type: ignore[attr-defined]
            self._loans[index] = (loaded.ticket, time.monotonic())
            self.meter.deliver(loaded.ticket.rows, loaded.nbytes)
            if self._arena is not None:
                self._arena.deliver(index)
        return outcome

    def kick(self) -> None:
        """Look for slots that have become free: the consumer has just dropped a batch, maybe."""
        if self._arena is not None:
            self._arena.kick(None if self._conveyor is None else self._conveyor.feed)

    def peek(self) -> Outcome[Ticket, Loaded] | None:
        """Return what `take` would, and leave it there."""
        return None if self._conveyor is None else self._conveyor.peek()

    def ended(self) -> bool:
        """Tell whether nothing more will come; raises what kept it from coming."""
        if self._driver is not None and self._driver.done() and not self._closing:
            self._driver.result()  # an engine that failed must not look like the end of the data
        if self._closing or self._driver is None or self._driver.done():
            return True
        if self._conveyor is None or not self._conveyor.ended:
            return False
        if self._conveyor.failure is not None:
            raise self._conveyor.failure
        return True

    def changed(self, timeout: float | None = None) -> Awaitable[bool]:
        """Wait until it is worth to look again; returns False after ``timeout`` seconds."""
        belt = self._conveyor
        return self._begun(timeout) if belt is None else belt.changed(timeout)

    async def _begun(self, timeout: float | None) -> bool:
        with anyio.move_on_after(timeout) as scope:
            await self._opened.wait()
        return not scope.cancelled_caught

    def check_loop(self) -> None:
        """Raise :class:`RuntimeError` on any other loop than the session's own."""
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(
                "this loader was entered on another event loop; enter it on the loop that "
                "iterates over it"
            )

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """How many tickets wait for a slot, load, are ready, and how many slots are on loan."""
        belt, arena = self._conveyor, self._arena
        if belt is None or arena is None:
            return 0, 0, 0, 0
        return int(arena.starved), belt.loading, belt.ready, arena.on_loan

    @property
    def feed(self) -> Feed:
        """The face above it."""
        return self._spec.feed

    def loans(self) -> list[Loan]:
        """Return the delivered batches that still take a slot each, oldest first."""
        arena, now = self._arena, time.monotonic()
        if arena is None:
            return []
        return sorted(
            (
                Loan(ticket, now - since)
                for index, (ticket, since) in self._loans.items()
                if since is not None and not arena.is_free(index)
            ),
            key=lambda loan: -loan.seconds,
        )

    # One batch ------------------------------------------------------------------------------------

    async def _draw(self, tickets: Iterator[Ticket]) -> Ticket | None:
        return await self._loop.run_in_executor(self._lookup, next, tickets, None)

    def grant(self, ticket: Ticket) -> ArenaSlot | None:
        """Lend a slot to a ticket, if there is one: the session is its belt's gate."""
        assert self._arena is not None
        slot = self._arena.lend(self._spec.feed.layout_key(ticket), ticket.rows)
        if slot is not None:
            self._loans[slot.index] = (ticket, None)
        return slot

    async def wait(self) -> None:
        """Wait until there may be a slot."""
        assert self._arena is not None
        await self._arena.wait()
