"""The schedule: from a loader's arguments to the plan of its batches, all of them checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

from aioloader._loaders.group import DataGroup
from aioloader._order.arguments import whole_number
from aioloader._order.plan import Plan

__all__ = ["Schedule", "make_schedule"]

Groups = DataGroup[Any] | Iterable[DataGroup[Any]]


@final
@dataclass(frozen=True, slots=True)
class Schedule:
    """The groups, the plan over them, and where it starts: a stream position."""

    training: tuple[DataGroup[Any], ...]
    validation: tuple[DataGroup[Any], ...]
    plan: Plan
    start: int
    first_batch: int


def make_schedule(
    training: Groups,
    validation: tuple[str, int, Groups] | None,
    start_at: tuple[int, int],
    end_at: tuple[str, int] | None,
    interleave: bool,
) -> Schedule:
    """Make the schedule of a loader, or say which argument is wrong and how."""
    groups = _groups("training", training)
    batches_per_epoch = sum(group.batch_count for group in groups)
    period, held_out = _validation(validation, batches_per_epoch)
    plan = Plan(
        tuple(group.order for group in groups),
        tuple(group.order for group in held_out),
        validation_period=period,
        interleave=bool(interleave),
        end=_end(end_at, batches_per_epoch),
    )
    epoch, batches = _start(start_at)
    first = epoch * batches_per_epoch + batches
    if plan.end is not None and plan.end <= first:
        raise ValueError(
            f"end_at={end_at!r} is batch {plan.end}, at or before start_at={start_at!r}, "
            f"which is batch {first}: end_at counts from the beginning, not from start_at"
        )
    return Schedule(groups, held_out, plan, plan.position_of(epoch, batches), first)


def _groups(name: str, groups: Any) -> tuple[DataGroup[Any], ...]:
    if isinstance(groups, DataGroup):
        return (groups,)
    if isinstance(groups, Iterable):
        several = tuple(groups)
        if several and all(isinstance(group, DataGroup) for group in several):
            return several
    raise TypeError(f"{name} must be a DataGroup or several of them, got {groups!r}")


def _validation(validation: Any, per_epoch: int) -> tuple[int | None, tuple[DataGroup[Any], ...]]:
    if validation is None:
        return None, ()
    unit, every, groups = _parts("validation", validation, 3, '("epoch" | "batch", every, groups)')
    every = whole_number("validation's interval", every, at_least=1)
    return every * _batches("validation", unit, per_epoch), _groups("validation", groups)


def _end(end_at: Any, per_epoch: int) -> int | None:
    if end_at is None:
        return None
    unit, number = _parts("end_at", end_at, 2, '("epoch" | "batch", number)')
    return whole_number("end_at", number, at_least=0) * _batches("end_at", unit, per_epoch)


def _start(start_at: Any) -> tuple[int, int]:
    epoch, batches = _parts("start_at", start_at, 2, "(epoch, batches)")
    return (
        whole_number("start_at's epoch", epoch, at_least=0),
        whole_number("start_at's batches", batches, at_least=0),
    )


def _batches(name: str, unit: object, per_epoch: int) -> int:
    if unit == "epoch":
        return per_epoch
    if unit == "batch":
        return 1
    raise ValueError(f'{name} counts in "epoch" or "batch", not in {unit!r}')


def _parts(name: str, value: Any, count: int, form: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
        raise TypeError(f"{name} must be {form}, got {value!r}")
    return value
