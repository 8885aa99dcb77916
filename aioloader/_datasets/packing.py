"""Packing: sequences of different lengths in rows of fixed ones, whole or split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from aioloader._datasets.bins import Bins, PackingPlan, Sequences
from aioloader._datasets.foreign import opened
from aioloader._datasets.refilling import Refilling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from aioloader._datasets.iterators import DatasetIterator

__all__ = ["Packing"]


@final
@dataclass(frozen=True)
class Packing:
    """Rows of several sequences each, none of them split."""

    plan: PackingPlan

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over rows."""
        (parent,) = map(opened, parents)
        return _PackIterator(parent, self.plan)

    def __repr__(self) -> str:
        fit = "Best" if self.plan.best_fit else "First"
        return f"pipe({fit}FitPackIterDataset, {dict(self.plan.length_struct)})"


@final
class _PackIterator(Refilling[dict[str, Any]]):
    """Fills bins until an element has no place, and delivers them row by row.

    That element is the first of the next bins. To restore a position the bins are filled again.
    """

    def __init__(self, parent: DatasetIterator[Any], plan: PackingPlan) -> None:
        super().__init__(parent)
        self._plan = plan
        self._counter = 0
        self._forget(0)

    def _forget(self, row: int) -> None:
        self._bins = Bins(self._plan)
        self._pending: Sequences | None = None
        self._before: dict[str, Any] | None = None
        self._packed: dict[str, Any] = {}
        self._order: NDArray[Any] | Sequence[int] = ()
        self._row = row

    async def _advance(self) -> dict[str, Any]:
        while self._row >= len(self._order):
            if len(self._order):  # they are fewer than when the position was saved
                self._leave()
            await self._fill()
        row = self._order[self._row]
        element = {name: values[row] for name, values in self._packed.items()}
        self._row += 1
        self._counter += 1
        if self._row == len(self._order):
            self._leave()
        return element

    async def _fill(self) -> None:
        bins = self._bins
        if self._mark is None:
            self._begin_lot(self._parent.get_state())
        try:
            while True:
                if self._pending is None:
                    self._before = self._parent.get_state()
                    self._pending = await self._draw()
                if not bins.take(self._pending):
                    break
                self._pending = None
        except StopAsyncIteration:
            self._before = None
            if not bins.taken:
                raise
        self._packed = bins.packed()
        self._order = bins.order(self._packed, self._counter - self._row)
        self._bins = Bins(self._plan)

    def _leave(self) -> None:
        self._packed, self._order, self._row = {}, (), 0
        self._begin_lot(self._before)

    def _accept(self, element: Any) -> Sequences:
        taken = self._bins.taken
        return Sequences.of(element, self._plan, taken[0] if taken else None)

    def get_state(self) -> dict[str, Any]:
        return {**self._lot_state(), "next_row": self._row, "counter": self._counter}

    def set_state(self, state: dict[str, Any]) -> None:
        self._forget(state["next_row"])
        self._counter = state["counter"]
        self._restore_lot(state)
