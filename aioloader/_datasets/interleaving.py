"""Interleaving: a few of many datasets at a time, the next ones opened before their turn."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from aioloader._datasets.foreign import opened
from aioloader._datasets.hosts import Hands
from aioloader._datasets.iter_steps import AheadIterator
from aioloader._datasets.iterators import DatasetIterator
from aioloader._datasets.options import ReadOptions
from aioloader._datasets.requests import Bell, InThread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Buffers", "Interleaving"]

_THREADS = ReadOptions().num_threads


@final
@dataclass(frozen=True, slots=True)
class Buffers:
    """How far interleaving works ahead.

    Up to ``datasets`` are opened before their turn, by up to ``threads``; of each that is in
    use ``elements`` are made before they are asked for.
    """

    threads: int = 1
    datasets: int = 1
    elements: int = 1

    @property
    def opens_ahead(self) -> bool:
        """Whether datasets are opened before their turn."""
        return min(self.threads, self.datasets) > 0

    @property
    def read_options(self) -> ReadOptions:
        """How datasets with an index are read: always the same object for as many elements."""
        return _reading(self.elements)


@functools.lru_cache
def _reading(elements: int) -> ReadOptions:
    return ReadOptions(num_threads=min(elements, _THREADS), prefetch_buffer_size=elements)


@final
@dataclass(frozen=True)
class Interleaving:
    """Elements of ``cycle_length`` datasets at a time, in turn; those are the parents.

    ``lazy`` is a `MapDataset` of datasets, for which there are no parents. ``manned`` has workers
    make the elements of those: it is called with the place in the cycle and the dataset.
    """

    cycle_length: int
    buffers: Buffers = Buffers()
    lazy: Any = None
    manned: Callable[[int, Any], Any] | None = None

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over all of them."""
        datasets = parents if self.lazy is None else self.lazy
        return _InterleaveIterator(_Door(datasets, self), len(datasets), self)

    def __repr__(self) -> str:
        inside = "" if self.lazy is None else f"{self.lazy!r}, "
        return f"pipe(InterleaveIterDataset, {inside}cycle_length={self.cycle_length})"


async def _same(count: int, element: Any) -> Any:
    return element


@final
class _Made:
    """A dataset that is being made in a thread, or has been."""

    def __init__(self) -> None:
        self.bell = Bell()
        self.dataset: Any = None
        self.error: BaseException | None = None
        self.is_done = self.is_unwanted = False

    def make(self, datasets: Any, index: int) -> None:
        """Make it."""
        if not self.is_unwanted:
            try:
                self.dataset = datasets[index]
            except BaseException as error:
                self.error = error
        self.is_done = True
        self.bell.ring()

    def drop(self) -> None:
        """Have nobody wait for it."""
        self.is_unwanted = True
        self.bell.ring()

    async def wait(self) -> Any:
        """Return it."""
        while not self.is_done:
            await self.bell
            if self.is_unwanted:
                raise ValueError("this iterator has been closed meanwhile")
        if self.error is None:
            return self.dataset
        try:
            raise self.error
        finally:
            del self  # the error would refer to itself


@final
class _Door:
    """Opens datasets. Those of a `MapDataset` are made in threads: it is the user's code."""

    def __init__(self, datasets: Any, stage: Interleaving) -> None:
        self._datasets = datasets
        self._buffers = stage.buffers
        self._manned = stage.manned
        self._is_lazy = stage.lazy is not None
        self._hands: Hands | None = None
        self._made: dict[int, _Made] = {}

    @property
    def waits(self) -> bool:
        """Whether threads of its own have to be waited for."""
        return self._is_lazy and self._buffers.opens_ahead

    def open(self, index: int, seat: int) -> DatasetIterator[Any]:
        """Open a dataset, in this thread."""
        return self._opened(self._datasets[index], seat)

    def _opened(self, part: Any, seat: int) -> DatasetIterator[Any]:
        own = self._buffers.read_options
        if hasattr(part, "to_iter_dataset"):
            part = part.to_iter_dataset(own)
        if self._manned is not None:
            part = self._manned(seat, part)
        begun = [opened(part)]
        if self._buffers.elements < 2 or begun[0]._read_options is own:
            return begun[0]
        ahead: DatasetIterator[Any] = AheadIterator(
            lambda: begun.pop() if begun else opened(part), _same
        )
        ahead._read_options = own
        return ahead

    async def take(self, index: int, seat: int) -> DatasetIterator[Any]:
        """Return an open dataset."""
        if not self._is_lazy:
            return self.open(index, seat)
        made = self._made.get(index)
        if made is None:
            return await InThread(functools.partial(self.open, index, seat))  # type: ignore[no-any-return]
        try:
            return self._opened(await made.wait(), seat)
        finally:
            self._made.pop(index, None)

    def look_ahead(self, first: int, count: int) -> None:
        """Have the next datasets made, of ``count``."""
        if not self.waits:
            return
        for index in range(first, min(first + self._buffers.datasets, count)):
            if index not in self._made:
                made = self._made[index] = _Made()
                if self._hands is None:
                    self._hands = Hands(self._buffers.threads, "aioloader-open")
                self._hands.submit(functools.partial(made.make, self._datasets, index))
        if first == count:
            self.close()

    def close(self) -> None:
        """Forget what has been made and not been taken, and have the threads end."""
        made, self._made = self._made, {}
        for each in made.values():
            each.drop()
        hands, self._hands = self._hands, None
        if hands is not None:
            hands.close()


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

    def __init__(self, door: _Door, count: int, stage: Interleaving) -> None:
        self._door = door
        self._count = count
        self._upcoming = min(count, stage.cycle_length)
        self._turn = 0
        self._seats = [_Seat(k, door.open(k, k)) for k in range(self._upcoming)]
        super().__init__(self._iterators())
        own = stage.buffers.read_options  # which nobody has said for what comes after this
        said = [parent._read_options for parent in self._parents]
        self._read_options = next((s for s in said if s is not None and s is not own), None)
        self._settle()

    def _iterators(self) -> list[DatasetIterator[Any]]:
        return [seat.iterator for seat in self._seats if seat.iterator is not None]

    def _settle(self) -> None:
        parents = self._parents
        self._is_async = any(parent._is_async for parent in parents)
        self._waits = self._door.waits or any(parent._waits for parent in parents)
        self._loop_safe = all(parent._loop_safe for parent in parents)

    def _reseat(self) -> None:
        self._parents = tuple(self._iterators())
        self._settle()
        for parent in self._parents:
            parent._apply(self._dataset_options)

    async def _advance(self) -> Any:
        while True:
            seat = await self._next_seat()
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

    async def _next_seat(self) -> _Seat:
        """Return the seat whose turn it is; free ones are given to whoever is next."""
        self._door.look_ahead(self._upcoming, self._count)
        for _ in range(len(self._seats)):
            seat = self._seats[self._turn]
            if seat.iterator is None and self._upcoming < self._count:
                await self._give(seat)
            if seat.iterator is not None:
                return seat
            self._pass_on()
        raise StopAsyncIteration

    async def _give(self, seat: _Seat) -> None:
        index = self._upcoming
        try:
            iterator = await self._door.take(index, self._turn)
        except Exception as error:
            self._upcoming = index + 1  # the next one gets the seat
            error.add_note(f"in datasets[{index}] of interleave, as it was opened")
            raise
        self._upcoming = index + 1
        seat.index, seat.iterator, seat.last = index, iterator, None
        self._door.look_ahead(self._upcoming, self._count)
        iterator.start_prefetch()
        self._reseat()

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
        self._door.close()
        self._turn = state["next_index_in_cycle"]
        self._upcoming = state["next_index_in_datasets"]
        indices, states = state["iterators_in_use_indices"], state["iterators_in_use_states"]
        for place, (seat, index, its, ended) in enumerate(
            zip(self._seats, indices, states, state["exhausted"], strict=True)
        ):
            if seat.iterator is not None and (ended or seat.index != index):
                seat.iterator.close()
                seat.iterator = None
            if ended:
                seat.index, seat.last = index, its
                continue
            if seat.iterator is None:
                seat.index, seat.iterator, seat.last = index, self._door.open(index, place), None
            seat.iterator.set_state(its)
        self._reseat()

    def close(self) -> None:
        super().close()
        self._door.close()
