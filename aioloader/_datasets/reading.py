"""Reading: from a `MapDataset` to an `IterDataset`, its elements made ahead of use, in order."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, final

from aioloader._datasets.fetching import Failed, Fetching
from aioloader._datasets.filtering import Removals
from aioloader._datasets.hosts import Hands
from aioloader._datasets.iter_dataset import StagedIterDataset
from aioloader._datasets.iter_steps import AheadIterator, PresentIterator
from aioloader._datasets.iterators import DatasetIterator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aioloader._datasets.iter_dataset import IterDataset
    from aioloader._datasets.options import ReadOptions

__all__ = ["Reading", "Runs", "read"]

T = TypeVar("T")
R = TypeVar("R")

_LEAVE_SECONDS = 0.5


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
        positions = _Positions(dataset, self.options)
        iterator: DatasetIterator[Any] = AheadIterator(positions, positions.get_element)
        if self.allow_nones:
            return iterator
        return PresentIterator(iterator, None, repr(dataset))

    def __repr__(self) -> str:
        return f"to_iter_dataset({'allow_nones=True' if self.allow_nones else ''})"


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
                element = self._dataset[index]
            removals = self._removals
            if removals is None:
                return element  # type: ignore[no-any-return]
            removals.count(element is not None, self._dataset_options)
            if element is not None:
                return element  # type: ignore[no-any-return]

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
        self._fetching = Fetching(self._dataset, rest, self._read_options)
        return self._fetching

    def _drop(self) -> None:
        fetching, self._fetching = self._fetching, None
        if fetching is not None:
            fetching.stop()

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._drop()

    def start_prefetch(self) -> None:
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
    finally:
        del failed  # the error would refer to itself


@final
class _Positions(_Indexed[int]):
    """The positions, from which elements are awaited."""

    _loop_safe = True

    def __init__(self, dataset: Any, options: ReadOptions) -> None:
        super().__init__(dataset, options)
        self._run = Runs(max(options.num_threads, 1))

    async def _advance(self) -> int:
        index = self._next
        if index >= self._length:
            raise StopAsyncIteration
        self._next = index + 1
        return index

    async def get_element(self, count: int, index: int) -> Any:
        """Return the element at ``index``."""
        return await self._dataset._aget(index, self._run)

    def close(self) -> None:
        super().close()
        self._run.close()


@final
class Runs:
    """Runs functions of the user's for the loop: up to ``count`` threads, and as many tasks."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._hands = Hands(count, "aioloader-read")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free = asyncio.Semaphore(count)

    async def __call__(self, function: Callable[..., R], /, *args: Any) -> R:
        """Call a plain function in a thread."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[R] = loop.create_future()

        def call() -> None:
            try:
                result = function(*args)
            except BaseException as error:
                _soon(loop, _settle, done, None, _portable(error))
            else:
                _soon(loop, _settle, done, result, None)

        self._hands.submit(call)
        return await done

    async def awaiting(self, function: Callable[..., Awaitable[R]], /, *args: Any) -> R:
        """Await a coroutine function."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._free = loop, asyncio.Semaphore(self._count)
        async with self._free:
            return await function(*args)

    def close(self) -> None:
        """Have the threads end, without waiting."""
        self._hands.close()


def _soon(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(function, *args)


def _settle(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.done():  # it was cancelled
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


def _portable(error: BaseException) -> BaseException:
    if not isinstance(error, StopIteration):  # which a future does not take
        return error
    raised = RuntimeError("a function of the dataset raised StopIteration")
    raised.__cause__ = error
    return raised
