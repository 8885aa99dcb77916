"""Loaders at their best, side by side: each module makes an iterator over batches of a `Work`.

An adapter has ``PACKAGES``, the distributions that it is about, and ``epoch(work)``, a context
manager whose value iterates over batches: an iterator, or an async iterator from an async context
manager. A batch maps names to arrays, of JAX or such as JAX can take.

A limit that hands over no batches has ``measure(work)`` in its place, which returns figures.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

LIMITS = {
    "pair": "bare pair",
    "bare": "bare processes",
    "child": "a bare child with numpy",
    "mapped": "mmap and sum",
}
"""What no loader can beat, and what tables call it."""

LOADERS = {
    "ours": "aioloader",
    "ours_vectorized": "aioloader, `vectorized`",
    "ours_threads": "aioloader, threads",
    "hydrax": "hydrax",
    "grain_threads": "Grain, threads",
    "grain_processes": "Grain, `mp_prefetch`",
    "torch": "torch `DataLoader`",
    "nodes_threads": "torchdata.nodes, threads",
    "nodes_processes": "torchdata.nodes, processes",
    "spdl_threads": "SPDL, threads",
    "spdl_subprocess": "SPDL, subprocess",
    "asyncio_pool": "asyncio and a process pool",
}
"""The loaders, and what tables call them."""

SHORT_PEERS = (
    "hydrax",
    "grain_threads",
    "torch",
    "nodes_threads",
    "spdl_threads",
)
"""Who takes part where there is little time: the fastest setting of each library, as a rule."""

PATIENCE = 60
"""Seconds that a loader waits for a batch, if it can be told."""

_ALIGNMENT = 64  # JAX takes over what is aligned so, and copies what is not
Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What every loader is given: items, the layout of a row, and how to fill one in place.

    ``fill(item, arrays, seed)`` is what users write. `batch` calls it for all rows of a batch,
    for loaders that work on whatever a function returns: in one call, which costs them least.
    ``depth`` is how many batches are ahead of the one in use.
    """

    items: Sequence[Any]
    layout: Mapping[str, tuple[tuple[int, ...], str]]
    fill: Callable[..., None]
    batch_size: int
    num_workers: int = 2
    depth: int = 4
    ordered: bool = True
    shuffled: bool = False
    start: int = 0
    limit: int | None = None
    fill_many: Callable[..., None] | None = None

    @property
    def batches(self) -> int:
        """The number of batches that are to come."""
        return self.limit or len(self.items) // self.batch_size - self.start

    @property
    def slots(self) -> int:
        """The batches that exist, for loaders that are asked for that: one is in use."""
        return self.depth + 1

    @property
    def cuts(self) -> Cuts:
        """The items of all batches."""
        return Cuts(self.items, self.batch_size, self.start)

    def batch(self, items: Sequence[Any]) -> Row:
        """Return a batch in arrays of its own."""
        arrays = {
            name: aligned((len(items), *shape), dtype)
            for name, (shape, dtype) in self.layout.items()
        }
        fill = self.fill
        for row, item in enumerate(items):
            fill(item, {name: array[row, ...] for name, array in arrays.items()}, None)
        return arrays

    @property
    def batch_bytes(self) -> int:
        """The bytes of a batch, each array on a multiple of 64."""
        return sum(span for _, _, span in self.spans())

    def spans(self) -> list[tuple[str, int, int]]:
        """Return names, offsets in a batch, and bytes with padding."""
        found, offset = [], 0
        for name, (shape, dtype) in self.layout.items():
            nbytes = self.batch_size * int(np.prod(shape)) * np.dtype(dtype).itemsize
            padded = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
            found.append((name, offset, padded))
            offset += padded
        return found

    def views(self, buffer: Any, start: int) -> Row:
        """Return the arrays of a batch that lies somewhere in a buffer."""
        arrays = {}
        for name, offset, _ in self.spans():
            shape, dtype = self.layout[name]
            whole = (self.batch_size, *shape)
            flat = np.frombuffer(buffer, dtype, int(np.prod(whole)), start + offset)
            arrays[name] = flat.reshape(whole)
        return arrays


@dataclass(frozen=True)
class Cuts:
    """The items of each batch, lazily: a sequence that pickles small."""

    items: Sequence[Any]
    size: int
    start: int = 0

    def __len__(self) -> int:
        return len(self.items) // self.size - self.start

    def __getitem__(self, index: int) -> Sequence[Any]:
        if index >= len(self):
            raise IndexError(index)
        first = (self.start + index) * self.size
        return self.items[first : first + self.size]

    def __iter__(self) -> Iterator[Sequence[Any]]:
        return map(self.__getitem__, range(len(self)))


def aligned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return a new array that JAX can take over as it is."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % _ALIGNMENT
    return raw[offset : offset + nbytes].view(dtype).reshape(shape)


def context_name() -> str:
    """Return how processes are started where a loader leaves that to its user."""
    return "forkserver" if os.name == "posix" else "spawn"
