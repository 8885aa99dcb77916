"""The tally: what became of each epoch's batches, to tell an epoch in which all were dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from aioloader.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aioloader._engine.progress import Progress
    from aioloader.protocols import Ticket

__all__ = ["Tally"]


@final
@dataclass(slots=True)
class _Epoch:
    issued: int = 0
    delivered: int = 0
    dropped: int = 0
    complete: bool = False
    whole: bool = True
    error: Exception | None = None


@final
class Tally:
    """Counts the tickets of each epoch, and of each validation run, as they come and go."""

    def __init__(self, per_epoch: int, per_validation: int) -> None:
        self._sizes = {False: per_epoch, True: per_validation}
        self._epochs: dict[tuple[bool, int], _Epoch] = {}

    def issue(self, tickets: Iterator[Ticket], progress: Progress) -> Iterator[Ticket]:
        """Count tickets on their way to be loaded; those that were passed before are left out."""
        for ticket in tickets:
            epoch = self._epoch(ticket)
            passed = progress.is_passed(ticket.position)
            if passed or (not epoch.issued and ticket.epoch_batch):
                epoch.whole = False  # some of it was delivered in an earlier run
            epoch.complete = ticket.epoch_batch == self._sizes[ticket.validation] - 1
            if not passed:
                epoch.issued += 1
                yield ticket
        for epoch in self._epochs.values():
            epoch.complete = True

    def deliver(self, ticket: Ticket) -> None:
        """Count a delivered batch."""
        epoch = self._epoch(ticket)
        epoch.delivered += 1
        self._settle(ticket, epoch)

    def drop(self, ticket: Ticket, error: Exception) -> None:
        """Count a dropped batch; raises if it was the last of an epoch that delivered none."""
        epoch = self._epoch(ticket)
        epoch.dropped += 1
        epoch.error = error
        self.check()
        self._settle(ticket, epoch)

    def check(self) -> None:
        """Raise if an epoch is over of which every batch was dropped."""
        for (validation, number), epoch in self._epochs.items():
            over = epoch.complete and epoch.whole and epoch.dropped == epoch.issued
            if over and epoch.error is not None:
                epoch.issued = -1  # said once
                kind = "validation run" if validation else "epoch"
                raise LoadError(
                    f"every batch of {kind} {number} was dropped; the last because: {epoch.error}"
                ) from epoch.error

    def _epoch(self, ticket: Ticket) -> _Epoch:
        key = ticket.validation, ticket.epoch
        epoch = self._epochs.get(key)
        if epoch is None:
            epoch = self._epochs[key] = _Epoch()
        return epoch

    def _settle(self, ticket: Ticket, epoch: _Epoch) -> None:
        if epoch.complete and epoch.delivered + epoch.dropped >= epoch.issued:
            del self._epochs[ticket.validation, ticket.epoch]
