"""Stages of a `MapDataset`: which of its parents' elements one needs, and what is made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np

from aioloader._datasets.batching import stack_elements
from aioloader._datasets.transforms import is_coroutine, name_of
from aioloader._order.positions import plain
from aioloader._order.reindex import ENDLESS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aioloader._order.positions import Positions
    from aioloader._order.reindex import Batches

__all__ = [
    "Batched",
    "Filtered",
    "Mapped",
    "MappedWithIndex",
    "RandomMapped",
    "Reindexed",
    "Step",
]


class Step(Protocol):
    """What a stage does, as pure functions of an index: `MapDataset` is what evaluates it."""

    parents: tuple[Any, ...]
    is_async: bool
    """Whether `finish` returns something to await."""
    is_identity: bool
    """Whether `finish` returns the parent's element as it is."""
    is_quick: bool
    """Whether `finish` is quick, and runs no code of the user's."""
    is_sparse: bool
    """Whether it may leave elements out."""

    def length(self) -> int | None:
        """Return the length of an epoch; None where a source does not know it."""

    def parent_indices(self, index: int) -> Sequence[tuple[int, int]]:
        """Return which elements it needs: pairs of a parent's position and an index there."""

    def finish(self, index: int, elements: Sequence[Any]) -> Any:
        """Return the element that is made of those, or an awaitable of it."""

    def element(self, index: int) -> Any:
        """Do both, where nothing has to be awaited."""

    def each(self, indices: Positions) -> Iterator[Any]:
        """Do the same for many indices, one after the other."""

    def stacked(self, indices: Positions) -> Any:
        """Return many elements as one array, or None where that has to be done one by one."""


@final
class Reindexed:
    """The parent's elements at other indices."""

    is_async = is_sparse = False
    is_identity = is_quick = True

    def __init__(self, parent: Any, mapping: Any, length: int | None, text: str) -> None:
        self.parents = (parent,)
        self._parent = parent
        self._mapping = mapping
        self._length = length
        self._text = text

    def length(self) -> int | None:
        """Return the length that the mapping gives it, or the parent's."""
        return self._length if self._length is not None else self._parent._length()

    def parent_indices(self, index: int) -> Sequence[tuple[int, int]]:
        """Return the index before."""
        return ((0, self._mapping.at(index)),)

    def finish(self, index: int, elements: Sequence[Any]) -> Any:
        """Return the element as it is."""
        return elements[0]

    def element(self, index: int) -> Any:
        """Return the parent's element."""
        return self._parent[self._mapping.at(index)]

    def each(self, indices: Positions) -> Iterator[Any]:
        """Return many of the parent's elements."""
        return self._parent._each(self._mapping.take(indices))  # type: ignore[no-any-return]

    def stacked(self, indices: Positions) -> Any:
        """Return many of the parent's elements as one array."""
        return self._parent._stacked(self._mapping.take(indices))

    def __repr__(self) -> str:
        return f"{self._parent._describe()}.{self._text}"


class _Applied(ABC):
    """A function of the user's, called with one element that is not None."""

    is_sparse = is_identity = is_quick = False
    method = ""

    def __init__(self, parent: Any, function: Callable[..., Any]) -> None:
        self.parents = (parent,)
        self._parent = parent
        self._function = function
        self.is_async = is_coroutine(function)

    def length(self) -> int | None:
        """Return the parent's length."""
        return self._parent._length()  # type: ignore[no-any-return]

    def parent_indices(self, index: int) -> Sequence[tuple[int, int]]:
        """Return the same index."""
        return ((0, index),)

    def finish(self, index: int, elements: Sequence[Any]) -> Any:
        """Return what the function makes of the element."""
        if self.is_async:
            return self._awaited(index, elements[0])
        return self._apply(index, elements[0])

    def element(self, index: int) -> Any:
        """Return what the function makes of the parent's element."""
        return self._apply(index, self._parent[index])

    def each(self, indices: Positions) -> Iterator[Any]:
        """Return the same for many indices."""
        return map(self._apply, plain(indices), self._parent._each(indices))

    def stacked(self, indices: Positions) -> Any:
        """Functions take elements one by one."""
        return None

    def _apply(self, index: int, element: Any) -> Any:
        if element is None:
            return None
        try:
            return self._call(index, element)
        except Exception as error:
            self._note(error, index)
            raise

    async def _awaited(self, index: int, element: Any) -> Any:
        if element is None:
            return None
        try:
            return await self._call_async(index, element)
        except Exception as error:
            self._note(error, index)
            raise

    @abstractmethod
    def _call(self, index: int, element: Any) -> Any: ...

    async def _call_async(self, index: int, element: Any) -> Any:
        return await self._call(index, element)

    def _note(self, error: Exception, index: int) -> None:
        error.add_note(f"in {self.method}({name_of(self._function)}) at index {index}")

    def __repr__(self) -> str:
        return f"{self._parent._describe()}.{self.method}({name_of(self._function)})"


@final
class Mapped(_Applied):
    """``function(element)``."""

    method = "map"

    def _call(self, index: int, element: Any) -> Any:
        return self._function(element)


@final
class MappedWithIndex(_Applied):
    """``function(index, element)``."""

    method = "map_with_index"

    def _call(self, index: int, element: Any) -> Any:
        return self._function(index, element)


@final
class Filtered(_Applied):
    """The element where ``function(element)`` is true, and None elsewhere."""

    method = "filter"
    is_sparse = True

    def _call(self, index: int, element: Any) -> Any:
        return element if self._function(element) else None

    async def _call_async(self, index: int, element: Any) -> Any:
        return element if await self._function(element) else None


_WORD = 1 << 64


@final
class RandomMapped(_Applied):
    """``function(element, rng)``, with random numbers that depend on seed and index alone."""

    method = "random_map"

    def __init__(self, parent: Any, function: Callable[..., Any], seed: int) -> None:
        super().__init__(parent, function)
        self._seed = seed
        self._spare: deque[tuple[np.random.Generator, dict[str, Any]]] = deque(maxlen=64)
        self._give_back(self._take(0))  # NumPy says what is wrong with a seed

    def _call(self, index: int, element: Any) -> Any:
        taken = self._take(index)
        try:
            return self._function(element, taken[0])
        finally:
            self._give_back(taken)

    async def _call_async(self, index: int, element: Any) -> Any:
        taken = self._take(index)
        try:
            return await self._function(element, taken[0])
        finally:
            self._give_back(taken)

    def _take(self, index: int) -> tuple[np.random.Generator, dict[str, Any]]:
        """Return a generator at the start of the index's stream: making one takes far longer."""
        try:
            taken = self._spare.pop()
        except IndexError:
            philox = np.random.Philox(self._seed)
            taken = np.random.Generator(philox), dict(philox.state)
        rng, state = taken
        # Negative indices have streams, too: those of the largest counters.
        state["state"]["counter"][3] = index % _WORD
        rng.bit_generator.state = state
        return taken

    def _give_back(self, taken: tuple[np.random.Generator, dict[str, Any]]) -> None:
        self._spare.append(taken)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_spare"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _spare=deque(maxlen=64))

    def __repr__(self) -> str:
        name = name_of(self._function)
        return f"{self._parent._describe()}.random_map({name}, seed={self._seed})"


@final
class Batched:
    """Runs of elements, made into one."""

    is_identity = is_sparse = is_quick = False

    def __init__(
        self, parent: Any, batches: Batches, batch_fn: Callable[[list[Any]], Any] | None
    ) -> None:
        self.parents = (parent,)
        self._parent = parent
        self._batches = batches
        self._batch_fn = batch_fn
        self.is_async = batch_fn is not None and is_coroutine(batch_fn)

    def length(self) -> int:
        """Return how many batches an epoch has."""
        return min(len(self._batches), ENDLESS)

    def parent_indices(self, index: int) -> Sequence[tuple[int, int]]:
        """Return a run of indices."""
        return [(0, i) for i in self._batches.at(index)]

    def finish(self, index: int, elements: Sequence[Any]) -> Any:
        """Return the batch of those elements."""
        return (self._batch_fn or stack_elements)(list(elements))

    def element(self, index: int) -> Any:
        """Return a batch, in one piece where the source can give it so."""
        indices = self._batches.at(index)
        if self._batch_fn is not None:
            return self._batch_fn(list(self._parent._each(indices)))
        stacked = self._parent._stacked(indices)
        return stack_elements(list(self._parent._each(indices))) if stacked is None else stacked

    def each(self, indices: Positions) -> Iterator[Any]:
        """Return many batches."""
        return map(self.element, plain(indices))

    def stacked(self, indices: Positions) -> Any:
        """Batches may have different lengths."""
        return None

    def __repr__(self) -> str:
        options = ", drop_remainder=True" if self._batches.drop_remainder else ""
        if self._batch_fn is not None:
            options += f", batch_fn={name_of(self._batch_fn)}"
        return f"{self._parent._describe()}.batch({self._batches.size}{options})"
