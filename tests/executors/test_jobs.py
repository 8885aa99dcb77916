"""Jobs and the ledger: every chunk is somewhere, until it is acknowledged once."""

from __future__ import annotations

import os
import weakref
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aioloader._executors import wire
from aioloader._executors.chunks import cut
from aioloader._executors.failures import Failure
from aioloader._executors.jobs import Job, Ledger, Pending
from aioloader._executors.parts import Part
from aioloader.errors import ItemError
from aioloader.protocols import Filled


class Hold:
    """Stands for what keeps a slot on loan."""


def add(
    ledger: Ledger, rows: int, pieces: int = 1, *, hold: object = None, payload: int = 0
) -> Job:
    """Put a job of ``rows`` rows into the ledger, cut into pieces, with rows from 100 on."""
    job = Job(rows)
    items = [bytes(payload) for _ in range(rows)]
    whole = Part(0, 0, range(100, 100 + rows), items, [None] * rows)
    bounds = [rows * k // pieces for k in range(pieces + 1)]
    job.expect(pieces)
    for start, stop in pairwise(bounds):
        number, part = ledger.number(), whole.take(start, stop)
        message = wire.encode(part.flat(), number, bulky=True)
        ledger.unsent.append(Pending(job, number, start, stop, part, message, hold))
    return job


def send_all(ledger: Ledger) -> list[Pending]:
    sent = []
    while (pending := ledger.next_unsent()) is not None:
        ledger.sent(pending)
        sent.append(pending)
    return sent


def failure(text: str = "broken") -> Failure:
    return Failure.capture(ValueError(text))


# Jobs ---------------------------------------------------------------------------------------------


def test_a_job_is_done_with_its_last_chunk() -> None:
    """Its columns are put together, whatever order the chunks come in."""
    ledger = Ledger()
    job = add(ledger, 5, 2)
    first, second = send_all(ledger)
    assert (first.start, first.stop, second.start, second.stop) == (0, 2, 2, 5)
    ledger.finish(second.number, Filled({"k": [2, 3, 4]}, 0.5, 1))
    assert not job.is_done
    ledger.finish(first.number, Filled({"m": [0, None]}, 0.25, 2))
    assert job.is_done
    expected = {"k": [None, None, 2, 3, 4], "m": [0, None, None, None, None]}
    assert job.result() == Filled(expected, 0.75, 3)


def test_a_job_whose_rows_return_nothing_has_no_columns() -> None:
    ledger = Ledger()
    job = add(ledger, 3)
    (pending,) = send_all(ledger)
    ledger.finish(pending.number, Filled(None, 0.5, 0))
    assert job.result().extras is None


def test_the_error_of_a_job_is_that_of_its_lowest_row() -> None:
    """Whichever chunk fails first."""
    ledger = Ledger()
    job = add(ledger, 9, 3)
    first, second, third = send_all(ledger)
    ledger.fail(third.number, 108, failure("eight"))
    ledger.fail(second.number, 104, failure("four"))
    assert not job.is_done
    ledger.finish(first.number, Filled())
    with pytest.raises(ItemError, match="four") as caught:
        job.result()
    assert caught.value.row == 104


def test_a_chunk_that_fails_as_a_whole_is_run_row_by_row() -> None:
    """So that the row which is at fault can be named, and the others are filled."""
    ledger = Ledger()
    job = add(ledger, 4, 2)
    first, second = send_all(ledger)
    ledger.finish(first.number, Filled())
    ledger.fail(second.number, None, failure())
    one, other = send_all(ledger)
    assert (list(one.rows), list(other.rows)) == ([102], [103])
    ledger.finish(one.number, Filled())
    ledger.fail(other.number, None, failure())
    with pytest.raises(ItemError) as caught:
        job.result()
    assert caught.value.row == 103


def test_deaths_are_counted_row_by_row() -> None:
    job = Job(4)
    assert [job.blame(2), job.blame(2), job.blame(3), job.blame(2)] == [1, 2, 1, 3]


def test_columns_that_do_not_fit_fail_the_job_and_nothing_else() -> None:
    """A worker's answer may be wrong; it must not be waited for again."""
    ledger = Ledger()
    job = add(ledger, 4)
    (pending,) = send_all(ledger)
    ledger.finish(pending.number, Filled({"k": [1, 2]}))
    assert job.is_done
    with pytest.raises(ItemError, match="2 values"):
        job.result()
    assert len(ledger) == 0


# The ledger ---------------------------------------------------------------------------------------


def test_chunks_go_out_in_the_order_in_which_they_came() -> None:
    ledger = Ledger()
    add(ledger, 4, 2)
    add(ledger, 6, 3)
    assert [pending.number for pending in send_all(ledger)] == [1, 2, 3, 4, 5]
    assert ledger.next_unsent() is None


def test_the_next_chunk_stays_where_it_is_until_it_is_sent() -> None:
    """A queue that turns out to be full loses nothing."""
    ledger = Ledger()
    add(ledger, 4, 2)
    assert ledger.next_unsent() is ledger.next_unsent()
    assert len(ledger) == 2


def test_requeued_chunks_come_first_and_in_order() -> None:
    """Those whose workers died were sent before those that are still unsent."""
    ledger = Ledger()
    add(ledger, 6, 6)
    for _ in range(4):
        pending = ledger.next_unsent()
        assert pending is not None
        ledger.sent(pending)
    ledger.finish(2, Filled())
    ledger.requeue()
    assert [pending.number for pending in send_all(ledger)] == [1, 3, 4, 5, 6]


def test_an_acknowledgement_counts_once() -> None:
    """A late one, of a chunk that has been given up or done already, is ignored."""
    ledger = Ledger()
    job = add(ledger, 4, 2)
    first, second = send_all(ledger)
    ledger.finish(first.number, Filled())
    ledger.finish(first.number, Filled())
    ledger.fail(first.number, None, failure())
    ledger.finish(999, Filled())
    assert not job.is_done
    ledger.finish(second.number, Filled())
    assert job.result() == Filled(None, 0.0, 0)


def test_a_split_chunk_is_its_rows_one_by_one() -> None:
    """The job waits for each of them, and the values land in their places."""
    ledger = Ledger()
    job = add(ledger, 5, 2)
    first, second = send_all(ledger)
    ledger.split(second)
    ledger.requeue()
    singles = send_all(ledger)
    assert singles[0] is first
    assert [list(pending.rows) for pending in singles] == [[100, 101], [102], [103], [104]]
    assert len({pending.number for pending in singles}) == 4
    for pending in singles:
        rows, items = list(pending.part.rows), list(pending.part.items)
        assert len(rows) == len(items) == len(pending.part.seeds)
        assert not job.is_done
        ledger.finish(pending.number, Filled({"row": rows}))
    assert job.is_done
    assert job.result().extras == {"row": [100, 101, 102, 103, 104]}


def test_the_message_of_a_split_chunk_tells_a_worker_of_one_row() -> None:
    ledger = Ledger()
    add(ledger, 3, payload=9000)
    (pending,) = send_all(ledger)
    ledger.split(pending)
    for number, single in ledger.under_way.items():
        assert wire.tag_of(single.message.packet) == number
    ledger.clear()


def test_chunks_that_nobody_waits_for_are_not_sent() -> None:
    """And they let go of their slot and their memory when their turn comes."""
    ledger, hold = Ledger(), Hold()
    gone = weakref.ref(hold)
    before = os.listdir("/proc/self/fd")
    abandoned = add(ledger, 4, 2, hold=hold, payload=9000)
    add(ledger, 1)
    del hold
    abandoned.abandoned = True
    pending = ledger.next_unsent()
    assert pending is not None
    assert pending.number == 3
    assert gone() is None
    assert os.listdir("/proc/self/fd") == before


def test_a_slot_is_held_until_its_last_chunk_is_acknowledged() -> None:
    """Also when the job has been abandoned: a worker may still be writing."""
    ledger, hold = Ledger(), Hold()
    gone = weakref.ref(hold)
    job = add(ledger, 4, 2, hold=hold)
    del hold
    first, second = send_all(ledger)
    job.abandoned = True
    ledger.finish(first.number, Filled())
    del first
    assert gone() is not None
    ledger.fail(second.number, None, failure())
    del second
    assert gone() is None


@pytest.mark.parametrize("how", ["finish", "fail", "drop", "split"])
def test_a_chunk_that_is_done_with_gives_its_memory_back(how: str) -> None:
    """Whatever became of it."""
    ledger = Ledger()
    before = os.listdir("/proc/self/fd")
    add(ledger, 2, payload=9000)
    (pending,) = send_all(ledger)
    assert os.listdir("/proc/self/fd") != before
    if how == "finish":
        ledger.finish(pending.number, Filled())
    elif how == "fail":
        ledger.fail(pending.number, 100, failure())
    elif how == "drop":
        ledger.drop(pending, ItemError("dropped", row=100))
    else:
        ledger.split(pending)
        assert pending.message.descriptor is None
        ledger.clear()
    assert os.listdir("/proc/self/fd") == before


def test_giving_up_fails_all_that_is_asked_for() -> None:
    """What is under way and what is unsent, once for each chunk; and all memory comes back."""
    ledger, hold = Ledger(), Hold()
    gone = weakref.ref(hold)
    before = os.listdir("/proc/self/fd")
    jobs = [add(ledger, 4, 2, hold=hold, payload=9000) for _ in range(3)]
    del hold
    for _ in range(3):
        pending = ledger.next_unsent()
        assert pending is not None
        ledger.sent(pending)
    del pending
    error = ItemError("no workers", row=0)
    ledger.give_up(error)
    assert ledger.broken is error
    assert len(ledger) == 0
    for job in jobs:
        assert job.is_done
        with pytest.raises(ItemError, match="no workers"):
            job.result()
    assert gone() is None
    assert os.listdir("/proc/self/fd") == before


def test_clearing_gives_everything_back_in_silence() -> None:
    ledger, hold = Ledger(), Hold()
    gone = weakref.ref(hold)
    before = os.listdir("/proc/self/fd")
    job = add(ledger, 4, 4, hold=hold, payload=9000)
    del hold
    pending = ledger.next_unsent()
    assert pending is not None
    ledger.sent(pending)
    del pending
    ledger.clear()
    assert (len(ledger), job.is_done, gone()) == (0, False, None)
    assert os.listdir("/proc/self/fd") == before


def test_what_rows_cost_is_learned_from_what_is_finished() -> None:
    ledger = Ledger()
    assert ledger.row_cost.seconds is None
    add(ledger, 4)
    (pending,) = send_all(ledger)
    ledger.finish(pending.number, Filled(None, 2.0))
    assert ledger.row_cost.seconds == pytest.approx(0.5)


# All of it, against a model -----------------------------------------------------------------------


class Sent:
    """Stands for a message, which has to be closed once it is not needed any more."""

    def __init__(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


class LedgerMachine(RuleBasedStateMachine):
    """Whatever happens to chunks, each row is in one of them until it is acknowledged once."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.jobs: list[tuple[Job, dict[int, Any], weakref.ref[Hold]]] = []
        self.messages: list[Sent] = []

    @rule(rows=st.integers(1, 12), workers=st.integers(1, 3))
    def fill(self, rows: int, workers: int) -> None:
        job, hold = Job(rows), Hold()
        whole = Part(0, 0, range(rows), list(range(rows)), [None] * rows)
        spans = cut(rows, workers, None)
        job.expect(len(spans))
        for start, stop in spans:
            number, part = self.ledger.number(), whole.take(start, stop)
            message: Any = Sent()
            self.messages.append(message)
            self.ledger.unsent.append(Pending(job, number, start, stop, part, message, hold))
        self.jobs.append((job, dict.fromkeys(range(rows), "wanted"), weakref.ref(hold)))

    @rule(count=st.integers(1, 5))
    def send(self, count: int) -> None:
        for _ in range(count):
            pending = self.ledger.next_unsent()
            if pending is not None:
                assert not pending.job.abandoned
                self.ledger.sent(pending)

    @precondition(lambda self: self.ledger.under_way)
    @rule(data=st.data(), how=st.sampled_from(["finish", "finish", "fail", "drop", "split"]))
    def hear(self, data: st.DataObject, how: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.ledger.under_way)))
        pending = self.ledger.under_way[number]
        rows = list(pending.rows)
        if how == "split":
            self.ledger.split(pending)
            return
        wanted = next(wanted for job, wanted, _ in self.jobs if job is pending.job)
        row = data.draw(st.sampled_from(rows))
        if how == "finish":
            self.ledger.finish(number, Filled({"row": rows}))
        elif how == "fail":
            self.ledger.fail(number, row, failure())
        else:
            self.ledger.drop(pending, ItemError("dropped", row=row))
        for each in rows:
            assert wanted[each] == "wanted"
            wanted[each] = "filled" if how == "finish" else "not filled"
        if how != "finish":
            wanted[row] = "failed"

    @rule()
    def hear_of_all(self) -> None:
        for number, pending in list(self.ledger.under_way.items()):
            rows = list(pending.rows)
            wanted = next(wanted for job, wanted, _ in self.jobs if job is pending.job)
            self.ledger.finish(number, Filled({"row": rows}))
            wanted.update(dict.fromkeys(rows, "filled"))

    @rule(number=st.integers(0, 5))
    def hear_again(self, number: int) -> None:
        if number not in self.ledger.under_way:
            self.ledger.finish(number, Filled())

    @rule()
    def lose_the_workers(self) -> None:
        under_way = sorted(self.ledger.under_way)
        unsent = [pending.number for pending in self.ledger.unsent]
        self.ledger.requeue()
        assert [pending.number for pending in self.ledger.unsent] == under_way + unsent

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        job, _, _ = data.draw(st.sampled_from(self.jobs))
        job.abandoned = not job.is_done

    @invariant()
    def every_row_is_in_one_place(self) -> None:
        chunks = [*self.ledger.under_way.values(), *self.ledger.unsent]
        assert len(chunks) == len(self.ledger)
        assert len({pending.number for pending in chunks}) == len(chunks)
        for job, wanted, hold in self.jobs:
            own = [pending for pending in chunks if pending.job is job]
            pending_rows = [row for pending in own for row in pending.rows]
            missing = {row for row, state in wanted.items() if state == "wanted"}
            assert len(pending_rows) == len(set(pending_rows))
            assert set(pending_rows) == missing or job.abandoned
            assert set(pending_rows) <= missing
            assert job.is_done == (not missing)
            assert (hold() is not None) == bool(own)

    @invariant()
    def the_messages_of_all_others_are_closed(self) -> None:
        chunks = [*self.ledger.under_way.values(), *self.ledger.unsent]
        needed = [pending.message for pending in chunks]
        assert all(message.is_closed or message in needed for message in self.messages)

    @invariant()
    def finished_jobs_tell_what_became_of_them(self) -> None:
        for job, wanted, _ in self.jobs:
            if not job.is_done:
                continue
            failed = [row for row, state in wanted.items() if state == "failed"]
            if failed:
                with pytest.raises(ItemError) as caught:
                    job.result()
                assert caught.value.row == min(failed)
            else:
                assert job.result().extras == {"row": list(wanted)}


LedgerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
test_no_chunk_is_lost_and_none_counts_twice = LedgerMachine.TestCase
