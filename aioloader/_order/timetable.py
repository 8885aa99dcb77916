"""The timetable: at which positions of a stream training and validation batches lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ["Timetable"]


@final
@dataclass(frozen=True, slots=True)
class Timetable:
    """A run of ``run`` validation batches after every ``period`` training batches.

    A position counts the batches of both kinds. ``period=None`` is a stream without
    validation, where a position is the number of a training batch.

    >>> timetable = Timetable(period=3, run=2)
    >>> ["V" if timetable.locate(position)[0] else "t" for position in range(8)]
    ['t', 't', 't', 'V', 'V', 't', 't', 't']
    """

    period: int | None = None
    run: int = 0

    def locate(self, position: int) -> tuple[bool, int]:
        """Return whether a validation batch is at ``position``, and its number in its kind."""
        if self.period is None:
            return False, position
        runs, rest = divmod(position, self.period + self.run)
        if rest < self.period:
            return False, runs * self.period + rest
        return True, runs * self.run + rest - self.period

    def position(self, validation: bool, number: int) -> int:
        """Return where a batch lies, given its number in its kind: undoes :meth:`locate`."""
        if not validation:
            return self.after(number)
        assert self.period is not None
        return number + (number // self.run + 1) * self.period

    def after(self, training_batches: int) -> int:
        """Return how many batches there are up to so many training batches.

        Validation runs that are due by then count in full. It is also the position of
        training batch number ``training_batches``, which follows them.

        >>> Timetable(period=3, run=2).after(3)
        5
        """
        if self.period is None:
            return training_batches
        return training_batches + training_batches // self.period * self.run
