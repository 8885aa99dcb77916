"""Refilling: iterators that make lots of several elements, and know where a lot has begun."""

from __future__ import annotations

from typing import Any, TypeVar

from aioloader._datasets.iterators import DatasetIterator

__all__ = ["Refilling"]

T = TypeVar("T")


class Refilling(DatasetIterator[T]):
    """Draws a lot of the parent's elements, and delivers what is made of it piece by piece.

    Its position is that of the parent before the lot, how much of the lot has been delivered,
    and how many errors have come out of it: nothing of the lot itself is saved, which is drawn
    again after `set_state`. An exception of the parent's is raised when it comes; the lot goes
    on behind it, with what it has got so far.
    """

    def __init__(self, parent: DatasetIterator[Any]) -> None:
        super().__init__(parent)
        self._next_of_parent = parent._advance
        self._mark: dict[str, Any] | None = None
        self._told = 0
        self._known = 0

    async def _draw(self) -> Any:
        """Return the next element of the parent's, as `_accept` makes it."""
        while True:
            try:
                return self._accept(await self._next_of_parent())
            except StopAsyncIteration:
                raise
            except Exception:
                if self._known:  # it was raised before the position was restored
                    self._known -= 1
                    continue
                self._told += 1
                raise

    def _accept(self, element: Any) -> Any:
        """Return what is kept of an element; its exceptions are as if the parent raised them."""
        return element

    def _begin_lot(self, mark: dict[str, Any] | None) -> None:
        """Begin another lot where the parent was at ``mark``, or is when it is next asked."""
        self._mark = mark
        self._told = self._known = 0

    def _lot_state(self) -> dict[str, Any]:
        mark = self._parent.get_state() if self._mark is None else self._mark
        return {"parent": mark, "errors": self._told}

    def _restore_lot(self, state: dict[str, Any]) -> None:
        self._mark = state["parent"]
        self._told = self._known = state["errors"]
        self._parent.set_state(state["parent"])
