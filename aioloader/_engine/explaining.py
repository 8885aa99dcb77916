"""Explaining: from what went wrong somewhere to an error that names group, batch and item."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from aioloader._executors.failures import short
from aioloader.errors import ItemError, LoadError, WorkerDied

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioloader.protocols import Ticket

__all__ = ["Foreign", "explain"]


class Foreign(Exception):
    """Carries what a user's code raised in a thread, whatever it is, to where it is explained.

    Some exceptions mean something to futures, tasks and loops (StopIteration, CancelledError,
    SystemExit), and would not get through as they are.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(type(error)))
        self.error = error


def explain(
    error: Exception, ticket: Ticket, items: Sequence[object], *, stage: str = "load"
) -> LoadError:
    """Return the :class:`LoadError` to raise in the batch's turn.

    An :class:`ItemError` names its row and item, and brings its traceback from where the
    item was loaded as a note; its cause becomes the cause. Any other error concerns the
    batch as a whole, and is itself the cause.

    The local variables of ``error``'s traceback are cleared: they hold views of the slot,
    and whoever keeps the error would keep the slot on loan.
    """
    raised = error.error if isinstance(error, Foreign) else error
    _clear_frames(raised, set())
    explained = _explained(raised, ticket, items, stage)
    explained.__cause__ = raised.__cause__ if isinstance(raised, ItemError) else raised
    return explained


def _clear_frames(error: BaseException | None, seen: set[int]) -> None:
    if error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        _clear_frames(error.__cause__, seen)
        _clear_frames(error.__context__, seen)


def _explained(
    error: BaseException, ticket: Ticket, items: Sequence[object], stage: str
) -> LoadError:
    group = ticket.describe_group()
    where = f"{ticket.describe()} could not be loaded"
    if not isinstance(error, ItemError):
        message = f"{where}: {stage} failed: {type(error).__name__}: {error}"
        return LoadError(message, group=group, batch=ticket.group_index)
    row = None if error.row < 0 else error.row
    item = None if row is None or row >= len(items) else items[row]
    which = "" if row is None else f"row {row} (item {short(item)}): "
    kind = LoadError if error.pid is None else WorkerDied
    explained = kind(
        f"{where}: {which}{error}", group=group, batch=ticket.group_index, row=row, item=item
    )
    if isinstance(explained, WorkerDied):
        explained.pid, explained.exitcode = error.pid, error.exitcode
    if error.remote_traceback:
        explained.add_note(f"Where it happened:\n{error.remote_traceback}")
    return explained
