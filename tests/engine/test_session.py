"""Sessions: tickets through slots to batches, in one task that whoever holds it may end."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any

import anyio
import numpy as np
import pytest
from session_bench import (
    LAYOUTS,
    ROWS,
    Executor,
    Feed,
    everything,
    following,
    opened,
    spec,
    tickets,
)
from support import LOOPS, both_loops, run_on, until

from aioloader._engine.session import Session
from aioloader._memory.arena import slot_bytes
from aioloader.errors import LoadError, WorkerDied
from aioloader.protocols import Seeds, Ticket


@pytest.fixture(autouse=True, params=[False, True], ids=["tasks", "no tasks"])
def _begins(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Executor, "begins", request.param)


def rows_of(number: int) -> list[int]:
    return list(range(number * ROWS, (number + 1) * ROWS))


# What comes out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("slow", [True, False], ids=["in a thread", "on the loop"])
async def test_every_ticket_becomes_its_batch(ordered: bool, slow: bool) -> None:
    """Whether items are taken and batches placed on the loop or in the helper's thread."""
    feed = Feed()
    feed.slow = feed.tickets_are_slow = slow
    session = await opened(tickets(10), feed, ordered=ordered)
    seen = await everything(session)
    assert (seen if ordered else sorted(seen)) == [rows_of(n) for n in range(10)]
    assert session.ended()
    await session.aclose()


async def test_a_batch_brings_its_ticket_layouts_extras_and_size() -> None:
    (ticket,) = tickets(1, rows=3)
    session = await opened([ticket])
    outcome = await following(session)
    assert outcome is not None
    loaded = outcome.value
    assert loaded is not None
    assert loaded.ticket is outcome.ticket is ticket
    assert loaded.placed.layouts["x"].shape == (3,)
    assert loaded.extras == {"item": [0, 1, 2]}
    assert loaded.nbytes == 3 * 8
    del loaded, outcome
    await session.aclose()


async def test_each_ticket_has_the_layout_of_its_group() -> None:
    session = await opened([*tickets(2), *tickets(2, start=2, group=1)])
    seen = await everything(session)
    assert [np.shape(x) for x in seen] == [(4,), (4,), (4, 2), (4, 2)]
    await session.aclose()


async def test_seeds_reach_the_executor() -> None:
    """Those of the ticket, or none for each row."""
    seen: list[Any] = []

    class Recording(Executor):
        async def fill(self, slot: Any, rows: Any, items: Any, seeds: Any) -> Any:
            seen.append(list(seeds))
            return await super().fill(slot, rows, items, seeds)

    (plain,) = tickets(1)
    seeded = Ticket(1, False, 0, 0, 1, 1, 1, range(4), 1, Seeds(3, 0, 4))
    session = await opened([plain, seeded], executor=Recording())
    await everything(session)
    await session.aclose()
    assert seen == [[None] * 4, list(Seeds(3, 0, 4))]


async def test_a_session_measures_what_it_does() -> None:
    session = await opened(tickets(5))
    await everything(session)
    meter = session.meter
    assert (meter.delivered, meter.rows, meter.bytes) == (5, 20, 160)
    assert (meter.load_seconds, meter.retries) == (2.5, 5)
    await session.aclose()


# Slots --------------------------------------------------------------------------------------------


async def test_depth_bounds_what_is_loading_ready_and_held() -> None:
    """Together: the memory that was reserved at the start is all that there is."""
    executor = Executor()
    session = await opened(tickets(10), executor=executor, depth=3)
    assert executor.allocated == 3 * slot_bytes(LAYOUTS)
    await until(lambda: session.counts == (1, 0, 3, 3))
    held = [await following(session) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert session.take() is None
    assert len(executor.filling) == 3
    assert [loan.ticket.position for loan in session.loans()] == [0, 1, 2]
    held.pop(1)
    gc.collect()
    outcome = await following(session)
    assert outcome is not None
    assert outcome.ticket.position == 3
    assert [loan.ticket.position for loan in session.loans()] == [0, 2, 3]
    del outcome, held
    await session.aclose()


async def test_arrays_that_were_copied_out_of_their_slots_hold_none() -> None:
    """It is the batch that takes a unit of depth; what is taken from it takes none."""
    feed = Feed()
    feed.copies = True
    session = await opened(tickets(10), feed)
    kept = []
    for _ in range(10):
        outcome = await following(session)
        assert outcome is not None
        assert outcome.value is not None
        kept.append(outcome.value.placed.arrays["x"])
        del outcome
    assert [array.tolist() for array in kept] == [rows_of(n) for n in range(10)]
    await until(lambda: session.loans() == [])
    await session.aclose()


async def test_a_batch_takes_a_unit_of_depth_for_as_long_as_it_lives() -> None:
    """Also where its arrays are elsewhere, as on an accelerator: depth bounds batches."""
    feed = Feed()
    feed.copies = True
    session = await opened(tickets(10), feed)
    held = [await following(session) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert session.take() is None
    assert [loan.ticket.position for loan in session.loans()] == [0, 1]
    held.clear()
    assert await everything(session) == [rows_of(n) for n in range(2, 10)]
    await session.aclose()


async def test_a_batch_kept_after_closing_stays_whole() -> None:
    session = await opened(tickets(10))
    outcome = await following(session)
    assert outcome is not None
    assert outcome.value is not None
    array = outcome.value.placed.arrays["x"]
    del outcome
    await session.aclose()
    del session
    gc.collect()
    assert array.tolist() == rows_of(0)


async def test_reclaim_is_what_a_starving_session_calls() -> None:
    lazy: list[Any] = []
    session = await opened(tickets(6), reclaim=lazy.clear)
    for number in range(6):
        outcome = await following(session)
        assert outcome is not None
        assert outcome.ticket.position == number
        lazy.append(outcome.value)
        outcome.value = None
    lazy.clear()
    del outcome
    await session.aclose()


# Errors -------------------------------------------------------------------------------------------


async def test_an_error_comes_in_its_turn_and_says_all_there_is_to_say() -> None:
    executor = Executor()
    executor.fails = {6}
    session = await opened(tickets(4), executor=executor)
    outcomes = [await following(session) for _ in range(2)]
    error = outcomes[1].error if outcomes[1] else None
    assert isinstance(error, LoadError)
    assert (error.group, error.batch, error.row, error.item) == ("training group 0", 1, 2, 6)
    assert "row 2 (item 6): bad item 6" in str(error)
    assert isinstance(error.__cause__, ValueError)
    assert any("from afar" in note for note in error.__notes__)
    outcomes.clear()
    assert list(await everything(session)) == [rows_of(2), rows_of(3)]
    await session.aclose()


@pytest.mark.parametrize("what", ["items", "place"])
@pytest.mark.parametrize("slow", [True, False])
async def test_errors_of_the_users_other_code_concern_the_batch(what: str, slow: bool) -> None:
    """The dataset may fail, and so may a placement."""
    feed = Feed()
    feed.slow = slow

    def fails(ticket: Ticket, *_: Any) -> Any:
        if ticket.position == 1:
            raise ZeroDivisionError("user code")
        return list(ticket.indices) if what == "items" else None

    if what == "items":
        feed.items = fails  # type: ignore[method-assign]
    else:
        feed.placing = fails
    session = await opened(tickets(3), feed)
    outcomes = [await following(session) for _ in range(2)]
    error = outcomes[1].error if outcomes[1] else None
    assert isinstance(error, LoadError)
    assert (error.batch, error.row) == (1, None)
    assert "ZeroDivisionError: user code" in str(error)
    assert isinstance(error.__cause__, ZeroDivisionError)
    outcomes.clear()
    assert await everything(session) == [rows_of(2)]
    await session.aclose()


def fails_directly(arrays: Any) -> None:
    raise ValueError(arrays["x"].shape)


def fails_because(arrays: Any) -> None:
    try:
        fails_directly(arrays)
    except ValueError as error:
        raise RuntimeError("because of") from error


def fails_while_failing(arrays: Any) -> None:
    try:
        fails_directly(arrays)
    finally:
        raise RuntimeError("while handling")


def fails_in_a_group(arrays: Any) -> None:
    try:
        fails_directly(arrays)
    except ValueError as error:
        raise ExceptionGroup("several", [error]) from None


@pytest.mark.parametrize(
    "failing", [None, fails_directly, fails_because, fails_while_failing, fails_in_a_group]
)
async def test_an_error_that_is_kept_keeps_no_slot(failing: Any) -> None:
    """Nor does it need the garbage collector to let go: an epoch of errors goes on."""
    feed, executor = Feed(), Executor()
    if failing is None:
        executor.fails = set(range(0, 400, ROWS))
    else:
        feed.placing = lambda ticket, slot: failing(slot.arrays)
    gc.collect()
    gc.disable()
    try:
        session = await opened(tickets(20), feed, executor)
        kept = []
        for _ in range(20):
            outcome = await following(session)
            assert outcome is not None
            kept.append(outcome.error)
        assert all(isinstance(error, LoadError) for error in kept)
        await session.aclose()
    finally:
        gc.enable()


@both_loops
def test_an_interruption_while_a_batch_is_placed_does_not_hide_it(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who catches Ctrl-C and goes on gets an error for the batch, and all the others."""
    monkeypatch.setattr(Executor, "begins", True)
    feed = Feed()

    def placing(ticket: Ticket, slot: Any) -> None:
        if ticket.position == 1:
            raise KeyboardInterrupt

    async def until_interrupted(session: Session) -> None:
        while True:
            await session.changed()

    async def rest(session: Session) -> None:
        assert await everything_before_an_error(session) == [rows_of(0)]
        assert await everything(session) == [rows_of(2), rows_of(3)]
        await session.aclose()

    feed.placing = placing
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        session = runner.run(opened(tickets(4), feed, depth=4))
        with pytest.raises(KeyboardInterrupt):
            runner.run(until_interrupted(session))
        runner.run(rest(session))


async def everything_before_an_error(session: Session) -> list[list[Any]]:
    seen: list[list[Any]] = []
    while (outcome := await following(session)) is not None and outcome.value is not None:
        seen.append(np.asarray(outcome.value.placed.arrays["x"]).tolist())
        outcome.value = None
    assert outcome is not None
    assert "interrupted by KeyboardInterrupt" in str(outcome.error)
    return seen


async def test_tickets_that_fail_are_not_the_end_of_the_data() -> None:
    def failing() -> Any:
        yield from tickets(2)
        raise OSError("no more tickets")

    session = await opened(failing())
    for _ in range(2):
        outcome = await following(session)
        assert outcome is not None
        del outcome
    with pytest.raises(OSError, match="no more tickets"):
        await following(session)
    await session.aclose()


async def test_an_executor_that_cannot_be_entered_is_reported_by_opening() -> None:
    """And everything is given back."""

    class Broken(Executor):
        async def __aenter__(self) -> Any:
            raise OSError("no workers")

    executor = Broken()
    session = Session(spec(Feed(), executor), iter(tickets(3)))
    with pytest.raises(OSError, match="no workers"):
        await session.open()
    assert executor.segment is not None
    assert executor.segment.buffer is None
    assert session.ended()


async def test_memory_that_cannot_be_had_is_reported_by_opening() -> None:
    class Greedy(Executor):
        def allocate(self, nbytes: int) -> Any:
            return super().allocate(1 << 50)

    executor = Greedy()
    session = Session(spec(Feed(), executor), iter(tickets(3)))
    with pytest.raises(MemoryError, match="MiB"):
        await session.open()
    assert (executor.entered, executor.left) == (0, 0)


async def test_a_worker_that_died_is_told_apart() -> None:
    class Deadly(Executor):
        async def fill(self, *args: Any) -> Any:
            self.fails = {1}
            try:
                return await super().fill(*args)
            except Exception as error:
                error.pid, error.exitcode = 4711, -9  # type: ignore[attr-defined]
                raise

    session = await opened(tickets(1), executor=Deadly())
    outcome = await following(session)
    assert outcome is not None
    assert isinstance(outcome.error, WorkerDied)
    await session.aclose()


# Ending -------------------------------------------------------------------------------------------


async def test_closing_ends_what_is_under_way_and_gives_everything_back() -> None:
    """In reverse order: the work, the executor, the memory."""
    executor = Executor()
    executor.go.clear()
    session = await opened(tickets(10), executor=executor)
    await until(lambda: len(executor.filling) == 2)
    await session.aclose()
    assert (executor.cancelled, executor.entered, executor.left) == (2, 1, 1)
    assert executor.segment is not None
    assert executor.segment.buffer is None
    assert session.ended()
    assert session.take() is None


async def test_closing_twice_is_harmless() -> None:
    executor = Executor()
    session = await opened(tickets(10), executor=executor)
    await session.aclose()
    await session.aclose()
    assert executor.left == 1


async def test_a_reader_that_waits_is_woken_by_closing() -> None:
    executor = Executor()
    executor.go.clear()
    session = await opened(tickets(10), executor=executor)
    reading = asyncio.ensure_future(following(session))
    await asyncio.sleep(0.01)
    await session.aclose()
    assert await reading is None


async def test_a_session_may_be_opened_read_and_closed_in_different_tasks() -> None:
    session = await asyncio.ensure_future(opened(tickets(4)))
    assert await asyncio.ensure_future(everything(session)) == [rows_of(n) for n in range(4)]
    await asyncio.ensure_future(session.aclose())


async def test_opening_may_be_cancelled_at_any_moment() -> None:
    """Memory that is reserved meanwhile is given back all the same."""

    class Slow(Executor):
        def allocate(self, nbytes: int) -> Any:
            segment: Any = super().allocate(nbytes)
            segment.reserve = lambda: time.sleep(0.002)
            return segment

        async def __aenter__(self) -> Any:
            await asyncio.sleep(0.001)
            return await super().__aenter__()

    for turns in range(40):
        executor = Slow()
        opening = asyncio.ensure_future(opened(tickets(10), executor=executor))
        for _ in range(turns):
            await asyncio.sleep(0.0002)
        opening.cancel()
        await asyncio.wait([opening])
        if not opening.cancelled():
            await opening.result().aclose()
        assert executor.entered == executor.left
        assert executor.segment is None or executor.segment.buffer is None


async def test_opening_may_be_cancelled_at_the_moment_when_the_memory_is_there() -> None:
    """In one turn of the loop, the cancellation first."""
    reserved = threading.Event()

    class Slow(Executor):
        def allocate(self, nbytes: int) -> Any:
            segment: Any = super().allocate(nbytes)
            segment.reserve = reserved.wait
            return segment

    executor = Slow()
    opening = asyncio.ensure_future(opened(tickets(10), executor=executor))
    await asyncio.sleep(0.01)
    asyncio.get_running_loop().call_soon(opening.cancel)
    reserved.set()
    time.sleep(0.05)
    await asyncio.wait([opening])
    assert opening.cancelled()
    assert executor.segment is not None
    assert executor.segment.buffer is None


async def test_closing_may_be_cancelled_and_gives_everything_back_all_the_same() -> None:
    """The cancellation is not lost either: whoever closes is cancelled once all is done."""

    class Slow(Executor):
        async def __aexit__(self, *exc: object) -> None:
            await asyncio.sleep(0.02)
            await super().__aexit__(*exc)

    executor = Slow()
    session = await opened(tickets(10), executor=executor)
    closing = asyncio.ensure_future(session.aclose())
    for _ in range(3):
        await asyncio.sleep(0.002)
        closing.cancel()
    await asyncio.wait([closing])
    await until(lambda: executor.left == 1)
    await until(lambda: executor.segment is not None and executor.segment.buffer is None)
    assert closing.cancelled()


@both_loops
def test_a_loop_that_ends_ends_its_sessions(loop: str) -> None:
    """The program was careless, and is ended all the same, with its workers."""
    executors: list[Executor] = []

    async def main() -> None:
        executors.append(Executor())
        executors[0].go.clear()
        await opened(tickets(10), executor=executors[0])

    run_on(loop, main())
    assert executors[0].left == 1


async def test_a_session_knows_its_loop() -> None:
    session = await opened(tickets(4))
    session.check_loop()

    async def elsewhere() -> None:
        session.check_loop()

    def run() -> Any:
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(elsewhere())

    await asyncio.to_thread(run)
    await session.aclose()


# Going elsewhere ----------------------------------------------------------------------------------


async def test_restarting_goes_on_with_other_tickets() -> None:
    """What was under way is dropped; the executor and the memory stay."""
    executor = Executor()
    session = await opened(tickets(10), executor=executor)
    first = await following(session)
    assert first is not None
    del first
    for start in (50, 20, 30):
        session.restart(iter(tickets(3, start=start)))
        assert await everything(session) == [rows_of(n) for n in range(start, start + 3)]
    assert (executor.entered, executor.left, executor.allocated) == (1, 0, 2 * slot_bytes(LAYOUTS))
    await session.aclose()


async def test_restarting_drops_what_nobody_has_taken() -> None:
    """Ready batches, those under way, and the permits that they had."""
    executor = Executor()
    session = await opened(tickets(10), executor=executor, depth=3)
    await until(lambda: session.counts[2] == 3)
    session.restart(iter(tickets(2, start=70)))
    session.restart(iter(tickets(2, start=80)))
    assert session.take() is None
    assert await everything(session) == [rows_of(80), rows_of(81)]
    await until(lambda: session.counts == (0, 0, 0, 0))
    await session.aclose()


async def test_a_batch_taken_before_a_restart_is_still_whole() -> None:
    session = await opened(tickets(10), depth=3)
    before = await following(session)
    session.restart(iter(tickets(5, start=50)))
    await everything(session)
    assert before is not None
    assert before.value is not None
    assert before.value.placed.arrays["x"].tolist() == rows_of(0)
    del before
    await session.aclose()


async def test_stopping_delivers_what_was_begun_and_then_ends() -> None:
    executor = Executor()
    executor.go.clear()
    session = await opened(tickets(10), executor=executor)
    await until(lambda: len(executor.filling) == 2)
    thread = threading.Thread(target=session.stop_feeding)  # from any thread
    thread.start()
    thread.join()
    executor.go.set()
    assert await everything(session) == [rows_of(0), rows_of(1)]
    await session.aclose()


async def test_stopping_a_closed_session_is_harmless() -> None:
    session = await opened(tickets(1))
    await session.aclose()
    session.stop_feeding()


# Caches -------------------------------------------------------------------------------------------


class Memory:
    """A cache of batches, which may remember some of their rows."""

    def __init__(self) -> None:
        self.rows: dict[int, Any] = {}
        self.stored: list[list[int]] = []
        self.forgets: set[int] = set()

    async def fetch(self, ticket: Ticket, slot: Any) -> Any:
        await anyio.sleep(0)
        if ticket.group_index not in self.rows:
            return range(ticket.rows)
        slot.arrays["x"][...] = self.rows[ticket.group_index]
        missing = [row for row in range(ticket.rows) if row in self.forgets]
        slot.arrays["x"][missing] = -1
        return missing

    async def store(self, ticket: Ticket, slot: Any, rows: Any) -> None:
        self.stored.append(list(rows))
        self.rows[ticket.group_index] = slot.arrays["x"].copy()


async def test_what_a_cache_remembers_is_not_loaded() -> None:
    """Whole batches, or some rows of them; what was missing is stored."""
    memory, executor = Memory(), Executor()
    session = await opened(tickets(3), executor=executor, caches={0: memory})
    assert await everything(session) == [rows_of(n) for n in range(3)]
    assert memory.stored == [[0, 1, 2, 3]] * 3
    session.restart(iter(tickets(3)))
    assert await everything(session) == [rows_of(n) for n in range(3)]
    assert len(executor.filling) == 3
    memory.forgets = {1, 3}
    session.restart(iter(tickets(3)))
    assert await everything(session) == [rows_of(n) for n in range(3)]
    assert executor.filling[3:] == [[1, 3], [5, 7], [9, 11]]
    assert memory.stored[3:] == [[1, 3]] * 3
    await session.aclose()


async def test_a_group_without_a_cache_is_loaded() -> None:
    memory = Memory()
    session = await opened(tickets(2), caches={1: memory})
    assert await everything(session) == [rows_of(0), rows_of(1)]
    assert memory.stored == []
    await session.aclose()
