"""Combining: several datasets side by side, or a few of many at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from aioloader._datasets.foreign import opened
from aioloader._datasets.iterators import DatasetIterator

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Interleaving", "Zipping"]


@final
@dataclass(frozen=True)
class Zipping:
    """Tuples of one element of each dataset."""

    strict: bool

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over tuples."""
        return _ZipIterator([opened(parent) for parent in parents], self.strict)

    def __repr__(self) -> str:
        return f"pipe(ZipIterDataset{'' if self.strict else ', strict=False'})"


@final
class _ZipIterator(DatasetIterator[tuple[Any, ...]]):
    """Draws from all parents, also where one of them raises: they stay side by side."""

    def __init__(self, parents: Sequence[DatasetIterator[Any]], strict: bool) -> None:
        super().__init__(parents)
        self._strict = strict
        self._is_over = False
        self._loop_safe = all(parent._loop_safe for parent in parents)

    async def _advance(self) -> tuple[Any, ...]:
        if self._is_over:
            raise StopAsyncIteration
        elements: list[Any] = []
        ended: list[int] = []
        failure: Exception | None = None
        for number, parent in enumerate(self._parents):
            try:
                elements.append(await parent._advance())
            except StopAsyncIteration:
                ended.append(number)
                if not self._strict:
                    break
            except Exception as error:
                error.add_note(f"in datasets[{number}] of zip")
                failure = failure or error
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # it would refer to itself
        if not ended:
            return tuple(elements)
        self._is_over = True
        if self._strict and len(ended) < len(self._parents):
            going = next(n for n in range(len(self._parents)) if n not in ended)
            raise ValueError(
                f"datasets[{ended[0]}] of zip is shorter than datasets[{going}]: pass "
                "strict=False to end with the shortest"
            )
        raise StopAsyncIteration

    def get_state(self) -> dict[str, Any]:
        states = [parent.get_state() for parent in self._parents]
        return {"parents": states, "stop": self._is_over}

    def set_state(self, state: dict[str, Any]) -> None:
        for parent, its in zip(self._parents, state["parents"], strict=True):
            parent.set_state(its)
        self._is_over = state["stop"]


@final
@dataclass(frozen=True)
class Interleaving:
    """Elements of ``cycle_length`` datasets at a time, in turn; those are the parents.

    ``lazy`` is a `MapDataset` of datasets, for which there are no parents.
    """

    cycle_length: int
    lazy: Any = None

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over all of them."""
        datasets = parents if self.lazy is None else self.lazy
        return _InterleaveIterator(datasets, len(datasets), self.cycle_length)

    def __repr__(self) -> str:
        inside = "" if self.lazy is None else f"{self.lazy!r}, "
        return f"pipe(InterleaveIterDataset, {inside}cycle_length={self.cycle_length})"


@final
class _Seat:
    """A place in the cycle: the dataset that has it, and whether that has ended."""

    def __init__(self, index: int, iterator: DatasetIterator[Any] | None) -> None:
        self.index = index
        self.iterator = iterator
        self.last: dict[str, Any] | None = None  # its state when it had ended

    def state(self) -> dict[str, Any]:
        if self.iterator is None:
            assert self.last is not None
            return self.last
        return self.iterator.get_state()


@final
class _InterleaveIterator(DatasetIterator[Any]):
    """One element of each seat in turn; who has ended leaves the seat when its turn comes again.

    The order is Grain's: a seat that becomes free is passed over once.
    """

    def __init__(self, datasets: Any, count: int, cycle_length: int) -> None:
        self._datasets = datasets
        self._count = count
        self._upcoming = min(count, cycle_length)
        self._turn = 0
        self._seats = [_Seat(k, self._open(k)) for k in range(self._upcoming)]
        super().__init__(self._iterators())
        self._loop_safe = all(parent._loop_safe for parent in self._parents)

    def _open(self, index: int) -> DatasetIterator[Any]:
        return opened(self._datasets[index])

    def _iterators(self) -> list[DatasetIterator[Any]]:
        return [seat.iterator for seat in self._seats if seat.iterator is not None]

    def _reseat(self) -> None:
        self._parents = tuple(self._iterators())
        self._is_async = any(parent._is_async for parent in self._parents)
        self._waits = any(parent._waits for parent in self._parents)
        self._loop_safe = all(parent._loop_safe for parent in self._parents)
        for parent in self._parents:
            parent._apply(self._dataset_options)

    async def _advance(self) -> Any:
        while True:
            seat = self._next_seat()
            assert seat.iterator is not None
            try:
                element = await seat.iterator._advance()
            except StopAsyncIteration:
                seat.last = seat.iterator.get_state()
                seat.iterator.close()
                seat.iterator = None
                self._pass_on()
                self._reseat()
                continue
            except Exception as error:
                error.add_note(f"in datasets[{seat.index}] of interleave")
                self._pass_on()
                raise
            self._pass_on()
            return element

    def _next_seat(self) -> _Seat:
        """Return the seat whose turn it is; free ones are given to whoever is next."""
        for _ in range(len(self._seats)):
            seat = self._seats[self._turn]
            if seat.iterator is None and self._upcoming < self._count:
                index = self._upcoming
                self._upcoming += 1
                seat.index, seat.iterator, seat.last = index, self._open(index), None
                seat.iterator.start_prefetch()
                self._reseat()
            if seat.iterator is not None:
                return seat
            self._pass_on()
        raise StopAsyncIteration

    def _pass_on(self) -> None:
        self._turn = (self._turn + 1) % len(self._seats)

    def get_state(self) -> dict[str, Any]:
        return {
            "next_index_in_cycle": self._turn,
            "next_index_in_datasets": self._upcoming,
            "iterators_in_use_indices": [seat.index for seat in self._seats],
            "iterators_in_use_states": [seat.state() for seat in self._seats],
            "exhausted": [int(seat.iterator is None) for seat in self._seats],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._turn = state["next_index_in_cycle"]
        self._upcoming = state["next_index_in_datasets"]
        indices, states = state["iterators_in_use_indices"], state["iterators_in_use_states"]
        for seat, index, its, ended in zip(
            self._seats, indices, states, state["exhausted"], strict=True
        ):
            if ended:
                if seat.iterator is not None:
                    seat.iterator.close()
                seat.index, seat.iterator, seat.last = index, None, its
                continue
            if seat.iterator is None or seat.index != index:
                seat.index, seat.iterator, seat.last = index, self._open(index), None
            seat.iterator.set_state(its)
        self._reseat()
