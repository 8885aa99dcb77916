"""Plans: one stream of training epochs and validation runs, from any position on."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from dataclasses import fields, replace
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioloader._order import permutation as permutation_module
from aioloader._order.group_order import GroupOrder, ShuffleLater
from aioloader._order.plan import Plan
from aioloader._order.turns import Turns
from aioloader.protocols import Ticket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aioloader._order.permutation import Words

MODES: list[ShuffleLater] = ["repeat", "reseed", "itemwise", "batchwise"]

orders = st.builds(
    lambda length, size, **rest: GroupOrder(length, min(size, length), **rest),
    length=st.integers(1, 40),
    size=st.integers(1, 12),
    seed=st.integers(-2, 2),
    shuffle_first=st.booleans(),
    shuffle_later=st.sampled_from(MODES),
    drop_remainder=st.booleans(),
)
groups = st.lists(orders, min_size=1, max_size=4).map(tuple)
ends = st.none() | st.integers(0, 60)
plans = st.builds(Plan, groups, interleave=st.booleans(), end=ends) | st.builds(
    Plan, groups, groups, st.integers(1, 25), interleave=st.booleans(), end=ends
)

TWO_KINDS = Plan(
    (GroupOrder(20, 4), GroupOrder(9, 3, shuffle_first=True)),
    (GroupOrder(4, 2), GroupOrder(3, 3)),
    validation_period=3,
)


def value(ticket: Ticket) -> tuple[Any, ...]:
    """Turn a ticket into something that compares by value."""
    plain = {name: getattr(ticket, name) for name in (field.name for field in fields(Ticket))}
    seeds = None if ticket.seeds is None else list(ticket.seeds)
    return tuple((plain | {"indices": list(ticket.indices), "seeds": seeds}).values())


def values(tickets: Iterator[Ticket], limit: int | None = None) -> list[tuple[Any, ...]]:
    return [value(ticket) for ticket in islice(tickets, limit)]


def epoch_of(groups: tuple[GroupOrder, ...], interleave: bool, epoch: int) -> Iterator[Any]:
    """Yield (group, turn, batch) for one epoch, the plain way."""
    readers = [group.read(epoch, stream=ordinal) for ordinal, group in enumerate(groups)]
    turns = Turns(tuple(group.batch_count for group in groups), interleave)
    for turn, (group, _) in enumerate(turns.sequence()):
        yield group, turn, next(readers[group])


def simulate(plan: Plan) -> Iterator[tuple[Any, ...]]:
    """Play the stream out from its beginning, without any arithmetic about positions."""
    position, trained, validated = count(), 0, 0
    runs = count()
    if plan.end == 0:
        return
    for epoch in count():
        for group, turn, batch in epoch_of(plan.training, plan.interleave, epoch):
            ticket = Ticket(next(position), False, group, epoch, turn, trained, *batch)
            yield value(ticket)
            trained += 1
            if plan.validation_period and trained % plan.validation_period == 0:
                run = next(runs)
                for group, turn, batch in epoch_of(plan.validation, plan.interleave, run):
                    plain = batch._replace(seed=None, seeds=None)
                    yield value(Ticket(next(position), True, group, run, turn, validated, *plain))
                    validated += 1
            if trained == plan.end:
                return


@settings(deadline=None, max_examples=60)
@given(plans)
def test_the_stream_is_that_of_a_simulation(plan: Plan) -> None:
    """Every field of every ticket is what playing epochs and runs out gives."""
    limit = 150
    expected = list(islice(simulate(plan), limit))
    assert values(plan.tickets(0), limit) == expected
    assert plan.length is None or len(expected) == min(limit, plan.length)


@settings(deadline=None, max_examples=60)
@given(plans, st.integers(0, 200))
def test_the_stream_can_begin_anywhere(plan: Plan, start: int) -> None:
    """From any position on it is the rest of the whole, and each ticket by random access."""
    rest = values(plan.tickets(start), 30)
    assert rest == values(plan.tickets(0), start + 30)[start:]
    assert rest == [value(plan.ticket(start + step)) for step in range(len(rest))]
    assert [row[0] for row in rest] == list(range(start, start + len(rest)))


@settings(deadline=None, max_examples=60)
@given(plans, st.integers(0, 3), st.integers(0, 200))
def test_a_training_batch_is_where_its_position_says(plan: Plan, epoch: int, batches: int) -> None:
    """Epochs and batches name a training batch, never the validation run before it."""
    endless = replace(plan, end=None)
    ticket = endless.ticket(endless.position_of(epoch, batches))
    assert not ticket.validation
    assert ticket.batch_num == epoch * plan.batches_per_epoch + batches
    assert (ticket.epoch, ticket.epoch_batch) == divmod(ticket.batch_num, plan.batches_per_epoch)


def test_resuming_at_a_boundary_does_not_validate_again() -> None:
    """Three training batches, a run of three, and on with the fourth."""
    assert TWO_KINDS.batches_per_validation == 3
    assert [TWO_KINDS.position_of(0, batches) for batches in range(5)] == [0, 1, 2, 6, 7]
    assert [ticket.validation for ticket in islice(TWO_KINDS.tickets(3), 5)] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_validation_runs_again_and_again() -> None:
    """A period that divides no epoch is counted across epochs, and no run is the last."""
    assert TWO_KINDS.batches_per_epoch == 8
    kinds = [ticket.validation for ticket in islice(TWO_KINDS.tickets(), 600)]
    assert kinds == ([False] * 3 + [True] * 3) * 100


def test_validation_tickets_count_runs() -> None:
    """Run, batch of the run and batch overall are those of validation, and there are no seeds."""
    runs = [ticket for ticket in islice(TWO_KINDS.tickets(), 18) if ticket.validation]
    assert [(t.epoch, t.epoch_batch, t.batch_num) for t in runs] == [
        (run, batch, run * 3 + batch) for run in range(3) for batch in range(3)
    ]
    assert [ticket.group for ticket in runs] == [0, 1, 0] * 3
    assert {(ticket.seed, ticket.seeds) for ticket in runs} == {(None, None)}


def test_a_validation_group_may_be_shuffled_for_each_run() -> None:
    """A run is an epoch of its groups' orders."""
    plan = replace(TWO_KINDS, validation=(GroupOrder(50, 50),))
    runs = [list(t.indices) for t in islice(plan.tickets(), 20) if t.validation]
    assert runs[0] == list(range(50)) == sorted(runs[1])
    assert runs[0] != runs[1] != runs[2]


@pytest.mark.parametrize(("end", "length", "last"), [(6, 12, True), (7, 13, False), (0, 0, None)])
def test_a_run_due_at_the_end_still_takes_place(end: int, length: int, last: bool | None) -> None:
    """The end counts training batches; the stream is as long as it says."""
    plan = replace(TWO_KINDS, end=end)
    tickets = list(plan.tickets())
    assert plan.length == len(tickets) == length == plan.position_of(0, end)
    assert sum(not ticket.validation for ticket in tickets) == end
    assert last is None or tickets[-1].validation is last


def test_positions_outside_the_stream_are_refused() -> None:
    """Past the end there is nothing to read, before the beginning there is an error."""
    plan = replace(TWO_KINDS, end=6)
    assert list(plan.tickets(12)) == list(plan.tickets(10**9)) == []
    with pytest.raises(IndexError, match="position 12 is past the end of a stream of 12"):
        plan.ticket(12)
    with pytest.raises(ValueError, match="position must be at least 0, got -1"):
        plan.ticket(-1)
    with pytest.raises(ValueError, match="start must be at least 0, got -1"):
        plan.tickets(-1)
    with pytest.raises(ValueError, match="batches must be at least 0, got -1"):
        plan.position_of(1, -1)
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        plan.position_of(-1)


def test_streams_read_side_by_side_do_not_disturb_each_other() -> None:
    """A plan has no state: one reader may be ahead of another."""
    ahead, behind = TWO_KINDS.tickets(), TWO_KINDS.tickets()
    expected = values(TWO_KINDS.tickets(), 60)
    assert values(ahead, 30) == expected[:30]
    for step in range(30):
        assert value(next(behind)) == expected[step]
        assert value(next(ahead)) == expected[30 + step]


def test_groups_with_one_seed_have_seeds_of_their_own() -> None:
    """Twin groups share no seed of a row or a batch, with one another or among themselves."""
    plan = Plan((GroupOrder(40, 4), GroupOrder(40, 4)), end=200)
    tickets = list(plan.tickets())
    rows = [seed for ticket in tickets for seed in ticket.seeds or ()]
    seeds = rows + [ticket.seed for ticket in tickets]
    assert len(set(seeds)) == len(seeds) == 200 * 5


def test_seeds_do_not_depend_on_interleaving() -> None:
    """A batch of a group is the same batch whenever its turn comes."""
    turned, lined = (replace(TWO_KINDS, interleave=flag, end=24) for flag in (True, False))
    first, second = (
        sorted(value(t)[6:] for t in plan.tickets() if not t.validation) for plan in (turned, lined)
    )
    assert first == second
    assert [t.group for t in turned.tickets()] != [t.group for t in lined.tickets()]


@pytest.mark.parametrize("mode", MODES)
def test_no_size_is_too_large_to_begin_with(
    mode: ShuffleLater, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ticket of a late epoch costs as much among 1e9 items as among 1e4."""
    evaluated: list[int] = []
    original = permutation_module._Feistel._pass

    def counting(network: permutation_module._Feistel, positions: Words) -> Words:
        evaluated.append(len(positions))
        return original(network, positions)

    monkeypatch.setattr(permutation_module._Feistel, "_pass", counting)

    def cost(length: int) -> tuple[int, int]:
        """Return the bytes and the blocks of positions that the first ticket takes."""
        evaluated.clear()
        tracemalloc.start()
        plan = Plan(
            tuple(GroupOrder(length + extra, 1, extra, True, mode) for extra in range(3)),
            (GroupOrder(length, 1, shuffle_first=True, shuffle_later=mode),),
            validation_period=length // 2,
        )
        for position in (plan.position_of(4), plan.position_of(4, length // 2) - 1):
            next(plan.tickets(position))
            plan.ticket(position)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # What is left beside whole blocks are single positions, and the few walked again.
        return peak, sum(positions // 200 for positions in evaluated)

    (_, few), (peak, many) = cost(10_000), cost(10**9)
    assert peak < 1 << 20
    assert 0 < many == few


def test_fingerprints_are_the_same_for_good() -> None:
    """Saved states hold them: a change needs a reason and a new version."""
    plan = Plan(
        (GroupOrder(10**9, 256), GroupOrder(100, 7, -3, True, "batchwise", False)),
        (GroupOrder(10, 5),),
        37,
    )
    assert plan.fingerprint() == "1f311aabe149e1af"


def test_fingerprints_do_not_depend_on_the_process() -> None:
    """Not even on the salt of Python's own hashes."""
    code = (
        "from aioloader._order.group_order import GroupOrder as G\n"
        "from aioloader._order.plan import Plan\n"
        "print(Plan((G(20, 4), G(9, 3, shuffle_first=True)), (G(4, 2), G(3, 3)), 3).fingerprint())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "77"},
        capture_output=True,
        check=True,
    )
    assert out.stdout.decode().strip() == TWO_KINDS.fingerprint()


def test_fingerprints_differ_where_streams_do() -> None:
    """Each field of a group, and of the plan, counts; the end alone does not."""
    order = GroupOrder(20, 4)
    single_fields: list[dict[str, Any]] = [
        {"length": 21},
        {"batch_size": 5},
        {"seed": 1},
        {"shuffle_first": True},
        {"shuffle_later": "reseed"},
        {"drop_remainder": False},
    ]
    changed = [replace(order, **setting) for setting in single_fields]
    base = Plan((order,), (order,), 3)
    others = [
        *(replace(base, training=(other,)) for other in changed),
        *(replace(base, validation=(other,)) for other in changed),
        replace(base, training=(order, order)),
        replace(base, validation=(order, order)),
        replace(base, validation_period=4),
        replace(base, interleave=False),
        Plan((order,)),
    ]
    prints = {plan.fingerprint() for plan in (base, *others)}
    assert len(prints) == len(others) + 1
    assert all(len(digits) == 16 and int(digits, 16) >= 0 for digits in prints)
    assert replace(base, end=5).fingerprint() == base.fingerprint()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"training": ()}, ValueError, "training must have at least one group"),
        ({"validation_period": 0}, ValueError, "validation_period must be at least 1, got 0"),
        ({"validation_period": 1.5}, TypeError, "validation_period must be a whole number"),
        ({"validation_period": None}, ValueError, "validation has groups, so validation_period"),
        ({"validation": ()}, ValueError, "validation_period=3 needs at least one validation"),
        ({"end": -1}, ValueError, "end must be at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """The message has the parameter, and the value where there is one."""
    with pytest.raises(error, match=message):
        replace(TWO_KINDS, **arguments)


def test_groups_may_come_as_lists() -> None:
    """They are kept as tuples, so that a plan stays a value."""
    plan = Plan([GroupOrder(4, 2)])  # type: ignore[arg-type]
    assert plan == Plan((GroupOrder(4, 2),))
    assert hash(plan) == hash(Plan((GroupOrder(4, 2),)))


@pytest.mark.parametrize("position", [2**63, 10**40])
def test_no_position_is_too_late(position: int) -> None:
    """Positions are whole numbers without limit."""
    assert next(TWO_KINDS.tickets(position)).position == position
