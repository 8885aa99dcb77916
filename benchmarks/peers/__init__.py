"""Loaders side by side: each module here makes an iterator over batches of the same `Work`.

An adapter has two names. ``PACKAGES`` are the distributions that it is about, and
``epoch(work)`` returns a context manager, whose value iterates over the batches of one epoch:
an iterator, or an async iterator from an async context manager. After an error the next batch
may be asked for, where the loader has more to give. A batch maps names to arrays, or to lists
where `Work.fill` returned what is no array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LOADERS = {
    "aioloader": "aioloader",
    "torch": "torch `DataLoader`",
    "grain": "Grain `mp_prefetch`",
    "hydrax": "hydrax",
    "spdl_pool": "SPDL, process pool",
    "spdl_subprocess": "SPDL, subprocess",
    "gather": "process pool and `gather`",
}
"""The adapters, and what tables call them."""

PATIENCE = 20
"""Seconds that a loader waits for a batch, if it can be told: what hydrax advises at least."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What every loader is given: items, the layout of a row, and how to fill one in place.

    ``fill(item, arrays, seed)`` returns None, or a mapping of what goes along with the row.
    It must be picklable, by a module that worker processes can import.
    """

    items: Sequence[Any]
    layout: Mapping[str, tuple[tuple[int, ...], str]]
    fill: Callable[..., Mapping[str, object] | None]
    batch_size: int = 8
    num_workers: int = 2
    depth: int = 4

    def row(self, item: Any) -> Row:
        """Return a row in arrays of its own, for loaders without memory to fill."""
        arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in self.layout.items()}
        return arrays | dict(self.fill(item, arrays, None) or {})

    def rows(self, items: Sequence[Any]) -> Row:
        """Return a batch of rows."""
        return stacked([self.row(item) for item in items])

    def item_batches(self) -> list[Sequence[Any]]:
        """Return the items, cut into batches."""
        starts = range(0, len(self.items), self.batch_size)
        return [self.items[start : start + self.batch_size] for start in starts]


def stacked(rows: Sequence[Row]) -> Row:
    """Return one batch of rows: arrays are stacked, and the rest listed."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: np.stack(column) if isinstance(column[0], np.ndarray) else column
        for name, column in columns.items()
    }
