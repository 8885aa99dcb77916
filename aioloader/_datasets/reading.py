"""Reading: from a `MapDataset` to an `IterDataset`, its elements made ahead of use, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, final

from aioloader._datasets.fetching import Failed, Fetching
from aioloader._datasets.filtering import Removals
from aioloader._datasets.iter_dataset import StagedIterDataset
from aioloader._datasets.iter_steps import AheadIterator, PresentIterator, not_the_end
from aioloader._datasets.iterators import DatasetIterator
from aioloader._datasets.runs import Runs

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from aioloader._datasets.iter_dataset import IterDataset
    from aioloader._datasets.options import ReadOptions

__all__ = ["Reading", "read"]

T = TypeVar("T")


def read(dataset: Any, read_options: ReadOptions, allow_nones: bool) -> IterDataset[Any]:
    """Return the elements of one epoch of a `MapDataset`, in order.

    Elements that are None are left out, unless ``allow_nones`` says otherwise.
    """
    return StagedIterDataset(Reading(read_options, allow_nones), dataset)


@final
@dataclass(frozen=True)
class Reading:
    """One epoch of a `MapDataset`."""

    options: ReadOptions
    allow_nones: bool

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator over it."""
        (dataset,) = parents
        if not dataset._is_async:
            return _ReadIterator(dataset, self.options, self.allow_nones)
        run = Runs(max(self.options.num_threads, 1))

        async def get(count: int, index: int) -> Any:
            return await dataset._aget(index, run)

        iterator: DatasetIterator[Any] = AheadIterator(
            lambda: _Positions(dataset, self.options), get, width=_width(run.count)
        )
        if self.allow_nones:
            return iterator
        return PresentIterator(iterator, None, repr(dataset))

    def __repr__(self) -> str:
        return f"to_iter_dataset({'allow_nones=True' if self.allow_nones else ''})"


def _width(count: int) -> int:
    # An element that is in a thread leaves its turn to await something to another one.
    return 2 * count if count > 1 else 1


class _Indexed(DatasetIterator[T]):
    """Goes through the positions of a dataset."""

    def __init__(self, dataset: Any, options: ReadOptions) -> None:
        super().__init__()
        self._dataset = dataset
        self._read_options = options
        self._length = len(dataset)
        self._next = 0

    def get_state(self) -> dict[str, Any]:
        return {"next_index": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        index = state["next_index"]
        if not 0 <= index <= self._length:
            raise IndexError(
                f"next_index={index} is not a position in a dataset of length {self._length}"
            )
        self._next = index


@final
class _ReadIterator(_Indexed[T]):
    """The elements themselves, made by threads, or by whoever asks where there are none."""

    def __init__(self, dataset: Any, options: ReadOptions, allow_nones: bool) -> None:
        super().__init__(dataset, options)
        # Threads would cost more than elements that are there in no time.
        self._loop_safe = dataset._is_quick
        self._waits = options.reads_ahead and not self._loop_safe
        self._loop_safe |= self._waits
        self._fetching: Fetching | None = None
        self._removals = None if allow_nones else Removals(repr(dataset))

    async def _advance(self) -> T:
        while True:
            index = self._next
            if index >= self._length:
                self._drop()
                raise StopAsyncIteration
            if self._waits:
                element = await self._fetched()
                self._next = index + 1
                if type(element) is Failed:
                    _raise(element)
            else:
                self._next = index + 1
                element = self._made(index)
            removals = self._removals
            if removals is None:
                return element  # type: ignore[no-any-return]
            removals.count(element is not None, self._dataset_options)
            if element is not None:
                return element  # type: ignore[no-any-return]

    def _made(self, index: int) -> Any:
        try:
            return self._dataset[index]
        except StopAsyncIteration as error:
            raise not_the_end(error) from error

    async def _fetched(self) -> Any:
        fetching = self._fetching or self._begin()
        while True:
            try:
                return fetching.take()
            except IndexError:
                if fetching.stopped:
                    raise ValueError("this iterator has been closed meanwhile") from None
            await fetching.bell

    def _begin(self) -> Fetching:
        rest = range(self._next, self._length)
        assert self._read_options is not None
        fetching = self._fetching = Fetching(self._dataset, rest, self._read_options)
        if self._closed:  # while a thread was on its way here
            self._drop()
        return fetching

    def _drop(self) -> None:
        fetching, self._fetching = self._fetching, None
        if fetching is not None:
            fetching.stop()

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._drop()

    def _start(self, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        if self._waits and self._fetching is None and self._next < self._length:
            self._begin()

    def close(self) -> None:
        super().close()
        self._drop()

    def __del__(self) -> None:
        if self._waits:
            self._drop()


def _raise(failed: Failed) -> None:
    try:
        raise failed.error
    except StopAsyncIteration as error:
        raise not_the_end(error) from error
    finally:
        del failed  # the error would refer to itself


@final
class _Positions(_Indexed[int]):
    """The positions, from which elements are awaited."""

    _loop_safe = True

    async def _advance(self) -> int:
        index = self._next
        if index >= self._length:
            raise StopAsyncIteration
        self._next = index + 1
        return index
