"""Chunks: how the rows of a batch are cut into pieces of work."""

from __future__ import annotations

from typing import final

__all__ = ["RowCost", "cut"]

CHUNK_SECONDS = 4e-3
"""What a chunk should last: long against its overhead, short against a batch."""

BUSY_SECONDS = 32e-3
"""The same while all workers have work: nobody waits for another, and each chunk costs messages."""

_SHARE_SECONDS = 0.5e-3


def cut(
    rows: int,
    num_workers: int,
    row_seconds: float | None,
    largest: int = 16384,
    *,
    waiting: int = 0,
) -> list[tuple[int, int]]:
    """Cut ``rows`` positions into ``(start, stop)`` pieces of about `CHUNK_SECONDS`.

    ``row_seconds`` is what a row has cost so far, None if that is not known yet; then each
    worker gets two pieces. A batch that is worth sharing is cut so that each worker gets
    some of it, and a cheaper one goes to one worker whole. When there is work for all of them
    already, ``waiting`` chunks, pieces last about `BUSY_SECONDS`, and most batches are one.

    >>> cut(8, 2, None)
    [(0, 2), (2, 4), (4, 6), (6, 8)]
    >>> cut(256, 2, 1e-6)
    [(0, 256)]
    >>> cut(256, 2, 4e-6)
    [(0, 128), (128, 256)]
    >>> cut(256, 2, 4e-6, waiting=2)
    [(0, 256)]
    >>> cut(64, 2, 4e-4, waiting=2)
    [(0, 64)]
    >>> cut(64, 2, 1e-3, waiting=2)
    [(0, 32), (32, 64)]
    >>> cut(3, 2, 1.0)
    [(0, 1), (1, 2), (2, 3)]
    """
    if row_seconds is None:
        pieces = 2 * num_workers
    else:
        total = rows * row_seconds
        pieces = round(total / CHUNK_SECONDS)
        if waiting >= num_workers:
            pieces = round(total / BUSY_SECONDS)
        elif total > _SHARE_SECONDS:
            pieces = max(pieces, num_workers)
    pieces = min(max(pieces, -(-rows // largest), 1), rows)
    return [(rows * k // pieces, rows * (k + 1) // pieces) for k in range(pieces)]


@final
class RowCost:
    """A moving average of what a row costs, so that chunks can be sized by it."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds: float | None = None

    def add(self, rows: int, seconds: float) -> None:
        """Take the measurement of one chunk."""
        if rows <= 0:
            return
        latest = seconds / rows
        self.seconds = latest if self.seconds is None else 0.75 * self.seconds + 0.25 * latest
