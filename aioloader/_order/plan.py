"""The plan of a loader: which batch lies at which position of its stream."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, final

from aioloader._order.arguments import whole_number
from aioloader._order.permutation import derive_key
from aioloader._order.timetable import Timetable
from aioloader._order.turns import Turns
from aioloader.protocols import Ticket

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aioloader._order.group_epoch import GroupBatch
    from aioloader._order.group_order import GroupOrder

__all__ = ["VERSION", "Plan"]

VERSION = 1
"""The version of all order, in states and caches: a new one whenever any order changes."""


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """Epochs of training groups, with validation runs between: a stream of tickets.

    A stream position counts every batch delivered, training and validation, and says all
    that is needed to go on from there. An epoch has every training group's batches once;
    groups take turns as :class:`~aioloader._order.turns.Turns` says. After every
    ``validation_period`` training batches, counted from the start of the stream, a run of
    all validation groups' batches follows, again and again; run ``v`` is epoch ``v`` of
    their orders. ``end`` is a number of training batches, also counted from the start,
    after which the stream ends; a run that is due there still takes place. Without ``end``
    the stream has none.

    >>> from aioloader._order.group_order import GroupOrder
    >>> plan = Plan((GroupOrder(6, 2),), (GroupOrder(1, 1),), validation_period=3, end=4)
    >>> [ticket.describe() for ticket in plan.tickets(start=2)]
    ['batch 2 of training group 0, epoch 0',
     'batch 0 of validation group 0, run 0',
     'batch 0 of training group 0, epoch 1']
    >>> plan.length, plan.ticket(3).validation
    (5, True)
    """

    training: tuple[GroupOrder, ...]
    validation: tuple[GroupOrder, ...] = ()
    validation_period: int | None = None
    interleave: bool = True
    end: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "training", tuple(self.training))
        object.__setattr__(self, "validation", tuple(self.validation))
        object.__setattr__(self, "interleave", bool(self.interleave))
        for name, at_least in (("validation_period", 1), ("end", 0)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole_number(name, value, at_least=at_least))
        if not self.training:
            raise ValueError("training must have at least one group, got none")
        if self.validation and self.validation_period is None:
            raise ValueError("validation has groups, so validation_period must be given, got None")
        if self.validation_period is not None and not self.validation:
            raise ValueError(
                f"validation_period={self.validation_period} needs at least one validation group"
            )

    @property
    def batches_per_epoch(self) -> int:
        """How many training batches an epoch has, over all groups."""
        return self._turns(False).total

    @property
    def batches_per_validation(self) -> int:
        """How many batches a validation run has, over all groups; 0 without validation."""
        return self._turns(True).total

    @property
    def length(self) -> int | None:
        """How many positions the stream has, or None if it is endless."""
        return None if self.end is None else self._timetable().after(self.end)

    def position_of(self, epoch: int, batches: int = 0) -> int:
        """Return the position of a training batch, ``batches`` after the start of ``epoch``.

        ``batches`` may be more than an epoch has. A validation run that is due right before
        that batch lies before the position: who resumes there does not validate again.
        """
        epoch = whole_number("epoch", epoch, at_least=0)
        batches = whole_number("batches", batches, at_least=0)
        return self._timetable().after(epoch * self.batches_per_epoch + batches)

    def ticket(self, position: int) -> Ticket:
        """Return the ticket at one position, by random access.

        Raises ``ValueError`` for a negative position and ``IndexError`` for one past the end.
        """
        position = whole_number("position", position, at_least=0)
        if self.length is not None and position >= self.length:
            raise IndexError(f"position {position} is past the end of a stream of {self.length}")
        validation, number = self._timetable().locate(position)
        turns = self._turns(validation)
        epoch, turn = divmod(number, turns.total)
        group, batch = turns.at(turn)
        stream = None if validation else group
        found = self._groups(validation)[group].epoch(epoch, stream=stream)[batch]
        return Ticket(position, validation, group, epoch, turn, number, *found)

    def tickets(self, start: int = 0) -> Iterator[Ticket]:
        """Yield the tickets from position ``start`` to the end, if there is one.

        Each equals what :meth:`ticket` returns, at a fraction of its cost. Any number of
        these iterators may be in use at once. Raises ``ValueError`` at once for a negative
        start; one past the end yields nothing.
        """
        start = whole_number("start", start, at_least=0)
        if not self.validation:
            left = None if self.length is None else max(self.length - start, 0)
            return islice(self._kind(False, start), left)
        return self._merged(count(start) if self.length is None else range(start, self.length))

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits for everything that determines the stream.

        That is all but ``end``: a stream that goes on for longer is the same stream. Equal
        plans have equal fingerprints in every process and on every platform.
        """
        parts: list[int | str] = [f"plan-{VERSION}", self.validation_period or 0, self.interleave]
        for groups in (self.training, self.validation):
            parts.append(len(groups))
            parts.extend(field for group in groups for field in astuple(group))
        return f"{derive_key(*parts):016x}"

    def _merged(self, positions: Iterable[int]) -> Iterator[Ticket]:
        """Yield from both kinds' own sequences as the timetable calls for them."""
        timetable = self._timetable()
        sequences: dict[bool, Iterator[Ticket]] = {}
        for position in positions:
            validation, number = timetable.locate(position)
            if validation not in sequences:
                sequences[validation] = self._kind(validation, number)
            yield next(sequences[validation])

    def _kind(self, validation: bool, number: int) -> Iterator[Ticket]:
        """Yield the tickets of one kind without end, from its batch ``number`` on."""
        turns, timetable = self._turns(validation), self._timetable()
        epoch, first = divmod(number, turns.total)
        while True:
            readers = self._readers(validation, epoch, turns.used(first))
            for turn, (group, _) in enumerate(turns.sequence(first), first):
                position = timetable.position(validation, number)
                batch = next(readers[group])
                yield Ticket(position, validation, group, epoch, turn, number, *batch)
                number += 1
            epoch, first = epoch + 1, 0

    def _readers(self, validation: bool, epoch: int, used: list[int]) -> list[Iterator[GroupBatch]]:
        """Open an epoch of every group where it has been used up to."""
        groups = self._groups(validation)
        return [
            group.read(epoch, start, stream=None if validation else ordinal)
            for ordinal, (group, start) in enumerate(zip(groups, used, strict=True))
        ]

    def _groups(self, validation: bool) -> tuple[GroupOrder, ...]:
        return self.validation if validation else self.training

    def _turns(self, validation: bool) -> Turns:
        counts = tuple(group.batch_count for group in self._groups(validation))
        return Turns(counts, self.interleave)

    def _timetable(self) -> Timetable:
        return Timetable(self.validation_period, self.batches_per_validation)
