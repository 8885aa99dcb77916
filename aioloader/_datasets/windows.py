"""Windows: elements shuffled within runs of a fixed length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, final

import numpy as np

from aioloader._datasets.foreign import opened
from aioloader._datasets.refilling import Refilling
from aioloader._order.arguments import whole_number
from aioloader._order.shuffling import Shuffle

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from aioloader._datasets.iterators import DatasetIterator

__all__ = ["WindowShuffling"]

T = TypeVar("T")

_SEEDS = 1 << 32


@final
@dataclass(frozen=True)
class WindowShuffling:
    """The same elements, each run of ``window_size`` in an order of its own."""

    window_size: int
    seed: int

    @classmethod
    def of(cls, window_size: int, seed: int) -> Self:
        """Check the arguments."""
        size = whole_number("window_size", window_size, at_least=1)
        return cls(size, whole_number("seed", seed, at_least=0, at_most=_SEEDS - 1))

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over the shuffled elements."""
        (parent,) = map(opened, parents)
        return _WindowIterator(parent, self.window_size, self.seed)

    def __repr__(self) -> str:
        text = f"window_size={self.window_size}, seed={self.seed}"
        return f"pipe(WindowShuffleIterDataset, {text})"


@final
class _WindowIterator(Refilling[T]):
    """Draws a window, and delivers it from the end of its permutation, as Grain does."""

    def __init__(self, parent: DatasetIterator[T], size: int, seed: int) -> None:
        super().__init__(parent)
        self._size = size
        self._seed = seed
        self._gathered: list[T] = []
        self._shuffled: list[T] = []
        self._index = 0
        self._place = 0

    async def _advance(self) -> T:
        while not self._shuffled:
            await self._fill()
        element = self._shuffled.pop()
        self._place += 1
        if not self._shuffled:
            self._index += 1
            self._place = 0
            self._begin_lot(None)
        return element

    async def _fill(self) -> None:
        if self._mark is None:
            self._begin_lot(self._parent.get_state())
        window = self._gathered
        try:
            while len(window) < self._size:
                window.append(await self._draw())
        except StopAsyncIteration:
            if not window:
                raise
        order = Shuffle(len(window), (self._seed + self._index) % _SEEDS)
        self._shuffled = [window[k] for k in order.take(np.arange(len(window))).tolist()]
        self._gathered = []
        if self._place:
            del self._shuffled[-self._place :]

    def get_state(self) -> dict[str, Any]:
        return {**self._lot_state(), "window_index": self._index, "pos_in_window": self._place}

    def set_state(self, state: dict[str, Any]) -> None:
        self._gathered, self._shuffled = [], []
        self._index, self._place = state["window_index"], state["pos_in_window"]
        self._restore_lot(state)
