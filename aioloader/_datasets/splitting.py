"""Splitting: sequences joined into one, and cut into rows of a fixed length."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from aioloader._datasets.bins import check_lengths, check_steps, written
from aioloader._datasets.foreign import opened
from aioloader._datasets.refilling import Refilling

if TYPE_CHECKING:
    from typing import Self

    from aioloader._datasets.iterators import DatasetIterator

__all__ = ["BOSHandling", "Splitting", "SplittingPlan"]


class BOSHandling(enum.Enum):
    """What becomes of the first token of each sequence in a row."""

    DO_NOTHING = enum.auto()
    REPLACE_FIRST_TOKEN_WITH_BOS = enum.auto()


@final
@dataclass(frozen=True, kw_only=True)
class SplittingPlan:
    """What splitting is asked to do."""

    length_struct: Mapping[str, int]
    meta_features: Collection[str] = ()
    split_full_length_features: bool = True
    bos_handling: BOSHandling = BOSHandling.DO_NOTHING
    bos_features: Collection[str] = ()
    bos_token_id: int | None = None

    def checked(self) -> Self:
        """Return this, or say which argument is wrong."""
        check_lengths(self.length_struct)
        if not set(self.length_struct) - set(self.meta_features):
            raise ValueError(f"meta_features are all of length_struct, {list(self.length_struct)}")
        is_used = self.bos_handling is not BOSHandling.DO_NOTHING
        if is_used and self.bos_token_id is None:
            raise ValueError(f"bos_handling={self.bos_handling} needs bos_token_id")
        if not is_used and (self.bos_token_id is not None or self.bos_features):
            raise ValueError(
                "bos_token_id and bos_features do nothing with bos_handling=DO_NOTHING"
            )
        if set(self.meta_features) & set(self.bos_features):
            raise ValueError("a feature is in both of meta_features and bos_features")
        return self

    @property
    def cut(self) -> list[str]:
        """The features that are cut."""
        return [name for name in self.length_struct if name not in self.meta_features]


@final
@dataclass(frozen=True)
class Splitting:
    """Rows of sequences, of which the last goes on in the next row."""

    plan: SplittingPlan

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over rows."""
        (parent,) = map(opened, parents)
        return _SplitIterator(parent, self.plan)

    def __repr__(self) -> str:
        return f"pipe(ConcatThenSplitIterDataset, {dict(self.plan.length_struct)})"


_Piece = dict[str, np.ndarray]


@final
class _SplitIterator(Refilling[dict[str, Any]]):
    """Joins pieces until a row is full, and keeps what is left of the last element.

    Its position is that of the parent before the element in which a row begins, how much of
    that is in earlier rows, and how many rows have been delivered since.
    """

    def __init__(self, parent: DatasetIterator[Any], plan: SplittingPlan) -> None:
        super().__init__(parent)
        self._plan = plan
        self._cut = plan.cut
        self._forget(dict.fromkeys(self._cut, 0), 0)

    def _forget(self, first: dict[str, int], emitted: int) -> None:
        self._first = first  # where the lot begins in its first element
        self._emitted = emitted
        self._skip = emitted
        self._resumes = any(first.values())
        self._rest: _Piece | None = None
        self._starts = first  # where the rest begins in its element
        self._before: dict[str, Any] | None = None
        self._pieces: list[_Piece] = []
        self._room = dict(self._plan.length_struct)
        self._whole: deque[dict[str, Any]] = deque()
        self._rows: deque[dict[str, Any]] = deque()

    async def _advance(self) -> dict[str, Any]:
        while True:
            while not self._rows:
                await self._fill()
            row = self._rows.popleft()
            is_new = not self._skip
            if is_new:
                self._emitted += 1
            else:
                self._skip -= 1
            if not self._rows:
                self._begin_lot(self._before)
                self._first, self._emitted, self._skip = self._starts, 0, 0
            if is_new:
                return row

    async def _fill(self) -> None:
        if self._mark is None:
            self._begin_lot(self._parent.get_state())
        try:
            while True:
                if self._rest is None:
                    await self._enter()
                if self._rest is not None and not self._add(self._rest):
                    break
        except StopAsyncIteration:
            self._before, self._starts = None, dict.fromkeys(self._cut, 0)
            if not self._pieces and not self._whole:
                raise
        if self._pieces:
            self._rows.append(self._joined(self._pieces))
        self._rows.extend(self._whole)
        self._pieces, self._whole = [], deque()
        self._room = dict(self._plan.length_struct)

    async def _enter(self) -> None:
        self._before = self._parent.get_state()
        piece = await self._draw()
        self._starts = dict.fromkeys(self._cut, 0)
        if self._resumes:
            self._resumes = False
            self._starts = self._first
            piece = {k: a[self._first.get(k, 0) :] for k, a in piece.items()}
        elif not self._plan.split_full_length_features and self._is_whole(piece):
            self._whole.append(self._joined([piece]))
            return
        self._rest = piece

    def _is_whole(self, piece: _Piece) -> bool:
        over = [len(piece[k]) - length for k, length in self._plan.length_struct.items()]
        return max(over) == 0

    def _add(self, piece: _Piece) -> bool:
        """Put as much of it into the row as fits; return whether that was all."""
        room = self._room
        if any(len(piece[k]) > room[k] for k in self._plan.meta_features if k in room):
            return False
        taken = {k: min(len(piece[k]), room[k]) for k in self._cut}
        is_all = all(taken[k] == len(piece[k]) for k in self._cut)
        if is_all or any(taken.values()):
            self._pieces.append({k: a[: taken.get(k)] for k, a in piece.items()})
        for k in room:
            room[k] -= taken.get(k, len(piece[k]))
        if is_all:
            self._rest = None
            return True
        self._rest = {k: a[taken.get(k, 0) :] for k, a in piece.items()}
        self._starts = {k: self._starts[k] + n for k, n in taken.items()}
        return False

    def _joined(self, pieces: Sequence[_Piece]) -> dict[str, Any]:
        plan, row = self._plan, {}
        for name, length in plan.length_struct.items():
            columns = [piece[name] for piece in pieces]
            lengths = np.array([len(column) for column in columns])
            starts = np.cumsum(lengths) - lengths
            values, _, within = written(columns, starts, (length,), None)
            if name in plan.bos_features:
                values[starts[lengths > 0]] = plan.bos_token_id
            row[name] = values
            if name not in plan.meta_features:
                numbers = np.zeros((2, length), np.int32)
                numbers[0, : len(within)] = np.repeat(np.arange(1, len(columns) + 1), lengths)
                numbers[1, : len(within)] = within
                row[f"{name}_segment_ids"], row[f"{name}_positions"] = numbers
        return row

    def _accept(self, element: Any) -> _Piece:
        plan = self._plan
        if not isinstance(element, Mapping) or set(element) != set(plan.length_struct):
            shown = sorted(element) if isinstance(element, Mapping) else type(element).__name__
            raise ValueError(f"elements must have the features of length_struct, got {shown}")
        piece = {name: np.atleast_1d(np.asarray(element[name])) for name in plan.length_struct}
        for name in plan.meta_features:
            if name in piece and len(piece[name]) > plan.length_struct[name]:
                raise ValueError(
                    f"meta feature {name!r} has {len(piece[name])} steps, and a row has room for "
                    f"{plan.length_struct[name]}: it is never split"
                )
        if self._pieces:
            check_steps(piece, self._pieces[0].values(), piece.values())
        return piece

    def get_state(self) -> dict[str, Any]:
        return {**self._lot_state(), "starts": dict(self._first), "emitted": self._emitted}

    def set_state(self, state: dict[str, Any]) -> None:
        self._forget(dict(state["starts"]), state["emitted"])
        self._restore_lot(state)
