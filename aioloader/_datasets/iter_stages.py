"""Stages of an `IterDataset`: values that begin iterators, and travel to worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final

from aioloader._datasets.foreign import AsyncIteratorOf, PlainIterator, opened
from aioloader._datasets.iter_steps import (
    AheadIterator,
    BatchIterator,
    EachIterator,
    FilterIterator,
    MixIterator,
    PresentIterator,
)
from aioloader._datasets.map_steps import Mapped, MappedWithIndex, RandomMapped
from aioloader._datasets.transforms import is_coroutine, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioloader._datasets.iterators import DatasetIterator
    from aioloader._datasets.options import DatasetOptions
    from aioloader._order.reindex import Mixture

__all__ = [
    "Batching",
    "Each",
    "Filtering",
    "Iterating",
    "Mixing",
    "Same",
    "Stage",
    "Unknown",
    "WithOptions",
]

_KEYS = {Mapped: None, MappedWithIndex: "counter", RandomMapped: "index_for_rng"}


class Stage(Protocol):
    """What a stage does."""

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return a new iterator; ``parents`` are the datasets before this one."""


@final
class Unknown:
    """In the place of the parent of a `MapDataset`'s step."""

    def _describe(self) -> str:
        return ""


@final
@dataclass(frozen=True)
class Each:
    """One element for each: ``step.finish(count, [element])`` returns it, or awaits it."""

    step: Mapped | MappedWithIndex | RandomMapped

    @property
    def key(self) -> str | None:
        """Under which key a state has the count of elements, if it has one."""
        return _KEYS[type(self.step)]

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over what the step makes of each element."""
        (parent,) = parents
        if not self.step.is_async:
            return EachIterator(opened(parent), self.step, self.key)
        return AheadIterator(lambda: opened(parent), self._call, self.key)

    def _call(self, count: int, element: Any) -> Any:
        return self.step.finish(count, (element,))

    def __repr__(self) -> str:
        return repr(self.step)[1:]


@final
@dataclass(frozen=True)
class Filtering:
    """The elements for which ``function`` is true."""

    function: Callable[[Any], Any]

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over those."""
        (parent,) = parents
        if not is_coroutine(self.function):
            return FilterIterator(opened(parent), self.function)
        judged: DatasetIterator[Any] = AheadIterator(lambda: opened(parent), self._call)
        return PresentIterator(judged, _REMOVED, repr(self))

    async def _call(self, count: int, element: Any) -> Any:
        return element if await self.function(element) else _REMOVED

    def __repr__(self) -> str:
        return f"filter({name_of(self.function)})"


_REMOVED = object()


@final
@dataclass(frozen=True)
class Batching:
    """Batches of ``size`` elements."""

    size: int
    drop_remainder: bool
    batch_fn: Callable[[list[Any]], Any] | None

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over batches."""
        (parent,) = parents
        if self.batch_fn is None or not is_coroutine(self.batch_fn):
            return self._batches(parent, self.batch_fn)
        return AheadIterator(lambda: self._batches(parent, list), self._call)

    def _batches(self, parent: Any, batch_fn: Any) -> DatasetIterator[Any]:
        return BatchIterator(opened(parent), self.size, self.drop_remainder, batch_fn)

    async def _call(self, count: int, elements: list[Any]) -> Any:
        assert self.batch_fn is not None
        return await self.batch_fn(elements)

    def __repr__(self) -> str:
        options = ", drop_remainder=True" if self.drop_remainder else ""
        if self.batch_fn is not None:
            options += f", batch_fn={name_of(self.batch_fn)}"
        return f"batch({self.size}{options})"


@final
@dataclass(frozen=True)
class Mixing:
    """Elements of several datasets in turn."""

    mixture: Mixture

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over all of them."""
        return MixIterator([opened(parent) for parent in parents], self.mixture)

    def __repr__(self) -> str:
        return "mix()"


@final
@dataclass(frozen=True)
class Iterating:
    """The elements of any iterable, plain or async."""

    iterable: Any

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over them."""
        iterable = self.iterable
        if hasattr(type(iterable), "__iter__"):
            return PlainIterator(lambda: iter(iterable))
        return AsyncIteratorOf(lambda: aiter(iterable))

    def __repr__(self) -> str:
        return f"source(<{type(self.iterable).__name__}>)"


@final
@dataclass(frozen=True)
class Same:
    """The parent's elements: what such a stage says is for other stages."""

    text: str

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return the parent's iterator."""
        (parent,) = map(opened, parents)
        return parent

    def __repr__(self) -> str:
        return self.text


@final
@dataclass(frozen=True)
class WithOptions:
    """The parent's elements, with other options."""

    options: DatasetOptions

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return the parent's iterator, to which the options have been told."""
        (parent,) = map(opened, parents)
        parent._apply(self.options)
        return parent

    def __repr__(self) -> str:
        return f"with_options({self.options})"
