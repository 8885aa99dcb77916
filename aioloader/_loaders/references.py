"""References: who still holds batches, for the error of a loader that has no slot left."""

from __future__ import annotations

import gc
import traceback
import types
import weakref
from typing import TYPE_CHECKING, Any, final

from aioloader.errors import BatchTimeoutError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioloader._engine.session import Loan, Session
    from aioloader._loaders.batch import Batch

__all__ = ["References", "debug_batch_references", "wait_changed"]

_enabled = False


def debug_batch_references(enabled: bool = True) -> None:
    """Have loaders remember where each batch was received, for `BatchTimeoutError` to tell.

    It costs some microseconds a batch. The error then also names what refers to each batch.

    >>> debug_batch_references()
    >>> debug_batch_references(False)
    """
    global _enabled
    _enabled = enabled


@final
class References:
    """The batches that have been delivered, while `debug_batch_references` is on."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref[Batch[Any]], str]] = {}

    def note(self, position: int, batch: Batch[Any]) -> None:
        """Remember a batch, and where it was received."""
        if not _enabled:
            return
        frames = [f for f in traceback.extract_stack() if "aioloader" not in f.filename][-1:]
        where = f"{frames[0].filename}:{frames[0].lineno}" if frames else "an unknown place"
        self._seen[position] = (weakref.ref(batch, lambda _: self._seen.pop(position, None)), where)

    def describe(self, position: int) -> str:
        """Say where a batch was received and what refers to it, if that is known."""
        reference, where = self._seen.get(position, (None, ""))
        if reference is None:
            return ""
        batch = reference()
        if batch is None:
            return f"; received at {where}; the batch is gone, its arrays are not"
        holders = ", ".join(sorted(set(_holders(batch)))) or "nothing that Python knows of"
        return f"; received at {where}; referred to by {holders}"


async def wait_changed(
    session: Session, timeout: float, depth: int, references: References
) -> None:
    """Wait until it is worth to look again; raises BatchTimeoutError after ``timeout`` seconds."""
    if not await session.changed(timeout):
        loading = session.counts[1]
        raise BatchTimeoutError(_explain(timeout, session.loans(), depth, loading, references))


def _explain(
    timeout: float, loans: Sequence[Loan], depth: int, loading: int, references: References
) -> str:
    """Say what a loader waited for in vain, and what to do."""
    if len(loans) < depth:
        return (
            f"no batch became ready within timeout={timeout:g} s: {loading} batches are being "
            f"loaded, {len(loans)} of {depth} slots hold batches that the program still refers "
            "to. Raise `timeout` if items take that long, or set `item_timeout` to find out "
            "which; asking for the next batch again goes on waiting"
        )
    lines = [
        f"no batch became ready within timeout={timeout:g} s, because all {depth} slots hold "
        "batches that the program still refers to:"
    ]
    lines += [
        f"  {loan.ticket.describe()}, delivered {loan.seconds:.1f} s ago"
        f"{references.describe(loan.ticket.position)}"
        for loan in loans
    ]
    lines.append(
        "Drop them (`del batch`, or `with batch:`), copy what you keep with jax.numpy.array, or "
        "raise `depth`."
    )
    if not _enabled:
        lines.append("aioloader.debug_batch_references() tells where each was received.")
    return "\n".join(lines)


def _holders(batch: Batch[Any]) -> list[str]:
    names = []
    for holder in gc.get_referrers(batch):
        if isinstance(holder, types.FrameType):
            if "aioloader" not in holder.f_code.co_filename:
                names.append(f"a variable of {holder.f_code.co_name}() at line {holder.f_lineno}")
        else:
            names.append(f"a {type(holder).__name__}")
    return names
