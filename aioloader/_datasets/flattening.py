"""Flattening: many elements of each one, by a function, or the rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast, final

import numpy as np

from aioloader._datasets.foreign import opened
from aioloader._datasets.iter_steps import AheadIterator, EachIterator
from aioloader._datasets.iterators import DatasetIterator
from aioloader._datasets.transforms import FlatMap, adapt, is_coroutine, name_of
from aioloader._memory.tree import flatten, paths, unflatten

if TYPE_CHECKING:
    from typing import Self

    from aioloader._memory.tree import Structure

__all__ = ["FlatMapping", "Rows", "rows_of"]

T = TypeVar("T")


@final
class FlatMapping:
    """The elements that ``function`` makes of each, one after the other."""

    def __init__(self, function: Callable[[Any], Any], text: str) -> None:
        self.function = function
        self.text = text
        self.is_async = is_coroutine(function)

    @classmethod
    def of(cls, transform: Any) -> Self:
        """Take a function, a coroutine function, or an instance of `FlatMap`."""
        function = adapt(transform, FlatMap, "flat_map")
        return cls(function, f"pipe(FlatMapIterDataset, {name_of(function)})")

    @classmethod
    def into_rows(cls) -> Self:
        """Take batches apart."""
        return cls(rows_of, "pipe(UnbatchIterDataset)")

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over all that is made."""
        (parent,) = parents
        if self.is_async:
            return _FlattenIterator(AheadIterator(lambda: opened(parent), self._call))
        return _FlattenIterator(EachIterator(opened(parent), self))

    def finish(self, index: int, elements: Sequence[Any]) -> Any:
        """Return a sequence of what becomes of one element; None stays one element."""
        element = elements[0]
        if element is None:
            return (None,)
        try:
            return _sequence(self.function(element))
        except Exception as error:
            error.add_note(f"in {self.text} at index {index}")
            raise

    async def _call(self, index: int, element: Any) -> Any:
        if element is None:
            return (None,)
        try:
            return _sequence(await self.function(element))
        except Exception as error:
            error.add_note(f"in {self.text} at index {index}")
            raise

    def __repr__(self) -> str:
        return self.text


def _sequence(made: Iterable[Any]) -> Sequence[Any]:
    if isinstance(made, np.ndarray):
        return cast("Sequence[Any]", made)
    return made if isinstance(made, Sequence) else list(made)


@final
class _FlattenIterator(DatasetIterator[T]):
    """The elements of the parent's sequences.

    Its position is that of the parent before a sequence, and a place in that; the sequence is
    made again after `set_state`.
    """

    def __init__(self, parent: DatasetIterator[Sequence[T]]) -> None:
        super().__init__(parent)
        self._next_of_parent = parent._advance
        self._loop_safe = parent._loop_safe
        self._sequence: Sequence[T] = ()
        self._place = 0
        self._before: dict[str, Any] | None = None

    async def _advance(self) -> T:
        while self._place >= len(self._sequence):
            await self._enter()
        element = self._sequence[self._place]
        self._place += 1
        if self._place == len(self._sequence):
            self._leave()
        return element

    async def _enter(self) -> None:
        if self._before is None:
            self._before = self._parent.get_state()
        try:
            self._sequence = await self._next_of_parent()
        except BaseException:
            self._leave()
            raise
        if self._place >= len(self._sequence):
            self._leave()

    def _leave(self) -> None:
        self._sequence, self._place, self._before = (), 0, None

    def get_state(self) -> dict[str, Any]:
        before = self._parent.get_state() if self._before is None else self._before
        return {"parent": before, "next_index_in_buffer": self._place}

    def set_state(self, state: dict[str, Any]) -> None:
        self._sequence, self._place = (), state["next_index_in_buffer"]
        self._before = state["parent"]
        self._parent.set_state(state["parent"])


@final
class Rows(Sequence[Any]):
    """The elements of a batch, each made when it is asked for, of views of the batch.

    >>> list(rows_of({"x": np.arange(4).reshape(2, 2), "y": None, "z": ["a", "b"]}))
    Traceback (most recent call last):
    ValueError: leaf ['z'][0] of a batch is no array, and cannot be taken apart
    >>> list(rows_of({"x": np.arange(4).reshape(2, 2), "y": None}))
    [{'x': array([0, 1]), 'y': None}, {'x': array([2, 3]), 'y': None}]
    """

    def __init__(self, structure: Structure, leaves: Sequence[Any], length: int) -> None:
        self._structure = structure
        self._leaves = leaves
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(self._length))]
        return unflatten(self._structure, [leaf[index] for leaf in self._leaves])

    def __iter__(self) -> Iterator[Any]:
        return (self[k] for k in range(self._length))

    def between(self, start: int, stop: int) -> list[Any]:
        """Return the leaves' parts for some of the elements."""
        return [leaf[start:stop] for leaf in self._leaves]

    @property
    def structure(self) -> Structure:
        """The tree that batch and elements are."""
        return self._structure


def rows_of(batch: Any) -> Rows:
    """Return the rows of a batch: a pytree whose leaves are arrays of the same first axis."""
    structure, leaves = flatten(batch)
    lengths = []
    for path, leaf in zip(paths(structure), leaves, strict=True):
        if not np.ndim(leaf) or not hasattr(leaf, "shape"):
            where = f"leaf {path} of a batch" if path else "a batch"
            raise ValueError(f"{where} is no array, and cannot be taken apart")
        lengths.append(len(leaf))
    if len(set(lengths)) > 1:
        named = ", ".join(f"{p}: {n}" for p, n in zip(paths(structure), lengths, strict=True))
        raise ValueError(f"the leaves of a batch have different first axes: {named}")
    return Rows(structure, leaves, lengths[0] if lengths else 0)
