"""Rebatching: batches of another size, and a last batch that is padded to its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from aioloader._datasets.batching import stack_elements
from aioloader._datasets.flattening import rows_of
from aioloader._datasets.foreign import opened
from aioloader._datasets.refilling import Refilling
from aioloader._memory.tree import flatten, unflatten
from aioloader._order.arguments import whole_number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from aioloader._datasets.flattening import Rows
    from aioloader._datasets.iterators import DatasetIterator
    from aioloader._memory.tree import Structure

__all__ = ["Rebatching", "batch_and_pad"]


@final
@dataclass(frozen=True)
class Rebatching:
    """The rows of all batches, in batches of ``size``."""

    size: int
    drop_remainder: bool

    @classmethod
    def of(cls, batch_size: int, drop_remainder: bool) -> Self:
        """Check the arguments."""
        return cls(whole_number("batch_size", batch_size, at_least=1), drop_remainder)

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over the new batches."""
        (parent,) = map(opened, parents)
        return _RebatchIterator(parent, self.size, self.drop_remainder)

    def __repr__(self) -> str:
        options = ", drop_remainder=True" if self.drop_remainder else ""
        return f"pipe(RebatchIterDataset, {self.size}{options})"


@final
class _RebatchIterator(Refilling[Any]):
    """Takes slices of the parent's batches, which it copies only where a new one has several."""

    def __init__(self, parent: DatasetIterator[Any], size: int, drop_remainder: bool) -> None:
        super().__init__(parent)
        self._size = size
        self._drop_remainder = drop_remainder
        self._structure: Structure | None = None
        self._forget(0)

    def _forget(self, offset: int) -> None:
        self._rows: Rows | None = None
        self._offset = self._first = offset  # in the present batch; where the new one begins
        self._pieces: list[list[Any]] = []
        self._missing = self._size
        self._before: dict[str, Any] | None = None

    async def _advance(self) -> Any:
        try:
            while self._missing:
                if self._rows is None:
                    await self._enter()
                self._take()
        except StopAsyncIteration:
            if not self._pieces or self._drop_remainder:
                raise
        leaves = [p[0] if len(p) == 1 else np.concatenate(p) for p in zip(*self._pieces)]  # noqa: B905
        assert self._structure is not None
        self._pieces, self._missing = [], self._size
        self._begin_lot(self._before)
        self._first = self._offset
        return unflatten(self._structure, leaves)

    async def _enter(self) -> None:
        before = self._parent.get_state()
        if self._mark is None:
            self._begin_lot(before)
        self._rows = await self._draw()
        self._before = before

    def _take(self) -> None:
        assert self._rows is not None
        stop = min(self._offset + self._missing, len(self._rows))
        if stop > self._offset:
            self._pieces.append(self._rows.between(self._offset, stop))
            self._missing -= stop - self._offset
            self._offset = stop
        if stop == len(self._rows):
            self._rows, self._before, self._offset = None, None, 0

    def _accept(self, element: Any) -> Rows:
        rows = rows_of(element)
        if not self._pieces:
            self._structure = rows.structure
        elif rows.structure != self._structure:
            raise ValueError("a batch has another structure than those before it")
        return rows

    def get_state(self) -> dict[str, Any]:
        return {**self._lot_state(), "batch_idx": self._first}

    def set_state(self, state: dict[str, Any]) -> None:
        self._forget(state["batch_idx"])
        self._restore_lot(state)


def batch_and_pad(
    values: Sequence[Any], *, batch_size: int, pad_value: Any = 0, mask: str | bool = False
) -> Any:
    """Stack elements, and fill the batch up to ``batch_size`` where they are fewer.

    For ``batch_fn`` of `MapDataset.batch` and `IterDataset.batch`, so that the last batch is as
    large as the others.

    >>> import functools
    >>> from aioloader import MapDataset
    >>> padded = functools.partial(batch_and_pad, batch_size=3)
    >>> list(MapDataset.range(1, 5).batch(3, batch_fn=padded))
    [array([1, 2, 3]), array([4, 0, 0])]
    >>> batch_and_pad([{"x": 7}], batch_size=2, mask="is_real")
    {'x': array([7, 0]), 'is_real': array([ True, False])}

    Args:
        values: The elements.
        batch_size: How many rows the batch has.
        pad_value: What numbers of the other rows are; strings there are empty.
        mask: Which rows are elements, as an array ``(batch_size,)`` of bool: a name puts it
            into batches that are dictionaries, True returns ``(batch, mask)``.

    Raises:
        ValueError: There are no elements, or more than ``batch_size``.
    """
    count = len(values)
    if not 0 < count <= batch_size:
        raise ValueError(f"{count} elements do not make a batch of {batch_size}")
    batch = stack_elements(values)
    if count < batch_size:
        structure, leaves = flatten(batch)
        batch = unflatten(structure, [_padded(leaf, batch_size, pad_value) for leaf in leaves])
    if mask is False:
        return batch
    is_real = np.arange(batch_size) < count
    if mask is True:
        return batch, is_real
    if not isinstance(batch, dict) or mask in batch:
        raise ValueError(f"mask={mask!r} cannot be a new entry of a batch: {type(batch).__name__}")
    return {**batch, mask: is_real}


def _padded(leaf: np.ndarray, size: int, value: Any) -> np.ndarray:
    whole = np.zeros((size, *leaf.shape[1:]), leaf.dtype)
    whole[: len(leaf)] = leaf
    if leaf.dtype.kind not in "US":
        whole[len(leaf) :] = value
    return whole
