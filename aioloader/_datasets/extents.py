"""Extents: how much of a dataset there is; its first elements, or all of them again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, final

from aioloader._datasets.foreign import opened
from aioloader._datasets.iterators import DatasetIterator
from aioloader._order.arguments import whole_number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

__all__ = ["Limiting", "Repeating"]

T = TypeVar("T")


@final
@dataclass(frozen=True)
class Limiting:
    """The first ``count`` elements."""

    count: int

    @classmethod
    def of(cls, count: int) -> Self:
        """Check the argument."""
        return cls(whole_number("count", count, at_least=1))

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over those."""
        (parent,) = map(opened, parents)
        return _LimitIterator(parent, self.count)

    def __repr__(self) -> str:
        return f"pipe(LimitIterDataset, {self.count})"


@final
@dataclass(frozen=True)
class Repeating:
    """All elements, ``num_epochs`` times or for ever; each epoch is the same."""

    num_epochs: int | None

    @classmethod
    def of(cls, num_epochs: int | None) -> Self:
        """Check the argument."""
        if num_epochs is not None:
            num_epochs = whole_number("num_epochs", num_epochs, at_least=1)
        return cls(num_epochs)

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over all epochs."""
        (parent,) = map(opened, parents)
        return _RepeatIterator(parent, self.num_epochs)

    def __repr__(self) -> str:
        return f"pipe(RepeatIterDataset, {self.num_epochs})"


@final
class _LimitIterator(DatasetIterator[T]):
    """The parent's first elements; an exception that comes in the place of one counts."""

    def __init__(self, parent: DatasetIterator[T], count: int) -> None:
        super().__init__(parent)
        self._next_of_parent = parent._advance
        self._loop_safe = parent._loop_safe
        self._limit = count
        self._count = 0

    async def _advance(self) -> T:
        if self._count >= self._limit:
            raise StopAsyncIteration
        try:
            element = await self._next_of_parent()
        except StopAsyncIteration:
            raise
        except Exception:
            self._count += 1
            raise
        self._count += 1
        return element

    def get_state(self) -> dict[str, Any]:
        return {"parent": self._parent.get_state(), "count_elements_read": self._count}

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["parent"])
        self._count = state["count_elements_read"]


@final
class _RepeatIterator(DatasetIterator[T]):
    """The parent's elements, and again from where it was when this was made."""

    def __init__(self, parent: DatasetIterator[T], num_epochs: int | None) -> None:
        super().__init__(parent)
        self._next_of_parent = parent._advance
        self._loop_safe = parent._loop_safe
        self._beginning = parent.get_state()
        self._num_epochs = num_epochs
        self._epoch = 0
        self._is_fresh = True  # an epoch without elements would be repeated for ever

    async def _advance(self) -> T:
        while self._epoch != self._num_epochs:
            try:
                element = await self._next_of_parent()
            except StopAsyncIteration:
                if self._is_fresh:
                    raise
                if self._epoch + 1 != self._num_epochs:
                    self._parent.set_state(self._beginning)
                self._epoch += 1
                self._is_fresh = True
                continue
            except Exception:
                self._is_fresh = False
                raise
            self._is_fresh = False
            return element
        raise StopAsyncIteration

    def get_state(self) -> dict[str, Any]:
        return {"parent": self._parent.get_state(), "epoch": self._epoch}

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["parent"])
        self._epoch = state["epoch"]
        self._is_fresh = False
