"""Iterators of the stages of an `IterDataset`, each over those of its parents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar, final

from aioloader._datasets.ahead import Ahead, Call
from aioloader._datasets.batching import stack_elements
from aioloader._datasets.filtering import Removals
from aioloader._datasets.iterators import DatasetIterator
from aioloader._datasets.options import ReadOptions
from aioloader._datasets.requests import CurrentLoop, InThread
from aioloader._datasets.room import Room
from aioloader._datasets.transforms import name_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Sequence

    from aioloader._order.reindex import Mixture

__all__ = [
    "AheadIterator",
    "BatchIterator",
    "EachIterator",
    "FilterIterator",
    "MixIterator",
    "PresentIterator",
    "not_the_end",
]

T = TypeVar("T")

_LEAVE_SECONDS = 0.5
_NEVER_SAID = ReadOptions()


def not_the_end(error: BaseException) -> RuntimeError:
    """Return what to raise where a function of the user's has raised what means an end."""
    return RuntimeError(f"a function of the dataset raised {type(error).__name__}")


class Counted(Protocol):
    """What is called with an element and its count, as stages of a `MapDataset` are."""

    is_async: bool

    def finish(self, index: int, elements: Sequence[Any]) -> Any: ...


@final
class EachIterator(DatasetIterator[T]):
    """One element for each of the parent's, by a plain function.

    The state is the parent's, or has the count of elements beside it, under ``key``.
    """

    def __init__(self, parent: DatasetIterator[Any], step: Counted, key: str | None = None) -> None:
        super().__init__(parent)
        self._next_of_parent = parent._advance
        self._finish = step.finish
        self._key = key
        self._count = 0

    async def _advance(self) -> T:
        element = await self._next_of_parent()
        count = self._count
        self._count = count + 1
        try:
            return self._finish(count, (element,))  # type: ignore[no-any-return]
        except StopAsyncIteration as error:
            raise not_the_end(error) from error

    def get_state(self) -> dict[str, Any]:
        state = self._parent.get_state()
        return state if self._key is None else {"parent": state, self._key: self._count}

    def set_state(self, state: dict[str, Any]) -> None:
        parent, self._count = _split(state, self._key)
        self._parent.set_state(parent)


def _split(state: dict[str, Any], key: str | None) -> tuple[dict[str, Any], int]:
    return (state, 0) if key is None else (state["parent"], state[key])


@final
class FilterIterator(DatasetIterator[T]):
    """The parent's elements for which a plain function is true."""

    def __init__(self, parent: DatasetIterator[T], function: Callable[[T], Any]) -> None:
        super().__init__(parent)
        self._next_of_parent = parent._advance
        self._function = function
        self._removals = Removals(f"filter({name_of(function)})")

    async def _advance(self) -> T:
        while True:
            element = await self._next_of_parent()
            try:
                is_kept = bool(self._function(element))
            except StopAsyncIteration as error:
                raise not_the_end(error) from error
            self._removals.count(is_kept, self._dataset_options)
            if is_kept:
                return element

    def get_state(self) -> dict[str, Any]:
        return self._parent.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state)


@final
class PresentIterator(DatasetIterator[T]):
    """The parent's elements but for those that are ``absent``."""

    def __init__(self, parent: DatasetIterator[T], absent: object, name: str) -> None:
        super().__init__(parent)
        self._next_of_parent = parent._advance
        self._absent = absent
        self._removals = Removals(name)
        self._loop_safe = parent._loop_safe

    async def _advance(self) -> T:
        while True:
            element = await self._next_of_parent()
            is_kept = element is not self._absent
            self._removals.count(is_kept, self._dataset_options)
            if is_kept:
                return element

    def get_state(self) -> dict[str, Any]:
        return self._parent.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state)


@final
class BatchIterator(DatasetIterator[Any]):
    """Batches of the parent's elements.

    An exception of the parent's stands for the batch in which it comes: what that has got so
    far goes with it, and the next batch begins behind the element.
    """

    def __init__(
        self,
        parent: DatasetIterator[Any],
        size: int,
        drop_remainder: bool,
        batch_fn: Callable[[list[Any]], Any] | None,
    ) -> None:
        super().__init__(parent)
        self._next_of_parent = parent._advance
        self._size = size
        self._drop_remainder = drop_remainder
        self._batch_fn = batch_fn or stack_elements
        self._loop_safe = parent._loop_safe

    async def _advance(self) -> Any:
        elements: list[Any] = []
        try:
            while len(elements) < self._size:
                elements.append(await self._next_of_parent())
        except StopAsyncIteration:
            if not elements or self._drop_remainder:
                raise
        try:
            if not self._loop_safe:
                return self._batch_fn(elements)
            return await InThread(lambda: self._batch_fn(elements))
        except StopAsyncIteration as error:
            raise not_the_end(error) from error

    def get_state(self) -> dict[str, Any]:
        return self._parent.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state)


@final
class MixIterator(DatasetIterator[Any]):
    """Elements of several parents in turn, until one of them ends in its turn."""

    def __init__(self, parents: Sequence[DatasetIterator[Any]], mixture: Mixture) -> None:
        super().__init__(parents)
        self._mixture = mixture
        self._index = 0
        self._is_over = False
        self._loop_safe = all(parent._loop_safe for parent in parents)

    async def _advance(self) -> Any:
        if self._is_over:
            raise StopAsyncIteration
        which, _ = self._mixture.at(self._index)
        try:
            element = await self._parents[which]._advance()
        except StopAsyncIteration:
            self._is_over = True
            raise
        except Exception as error:
            self._index += 1
            error.add_note(f"in datasets[{which}] of mix")
            raise
        self._index += 1
        return element

    def get_state(self) -> dict[str, Any]:
        states = [parent.get_state() for parent in self._parents]
        return {"parents": states, "index": self._index, "stop": self._is_over}

    def set_state(self, state: dict[str, Any]) -> None:
        for parent, its in zip(self._parents, state["parents"], strict=True):
            parent.set_state(its)
        self._index, self._is_over = state["index"], state["stop"]


@final
class AheadIterator(DatasetIterator[T]):
    """One element for each of the parent's, by a coroutine function, many at once.

    ``call(count, element)`` is awaited on the loop. The state is as that of an `EachIterator`:
    what is under way or ready does not count.

    Each belt has a parent of its own, which ``begin`` makes: the tasks of one that was dropped
    may be in the middle of it.
    """

    _is_async = _waits = True
    _ahead: Ahead | None = None

    def __init__(
        self,
        begin: Callable[[], DatasetIterator[Any]],
        call: Callable[[int, Any], Awaitable[Any]],
        key: str | None = None,
        *,
        width: int | None = None,
    ) -> None:
        super().__init__(begin())
        self._loop_safe = True
        self._make_parent = begin
        self._call = call
        self._key = key
        self._width = width
        self._count = 0
        self._position: dict[str, Any] | None = None

    async def _advance(self) -> T:
        ahead = self._ahead or self._begin(await CurrentLoop())
        while (call := ahead.take()) is None:
            await ahead.bell
            if ahead.stopped:
                raise ValueError("this iterator has been closed meanwhile")
        self._count, self._position = call.position
        if call.is_last:
            self._drop()  # its tasks have ended, and nobody is in the middle of the parent
            raise StopAsyncIteration
        if call.error is None:
            return call.value  # type: ignore[no-any-return]
        try:
            raise call.error
        except StopAsyncIteration as error:
            raise not_the_end(error) from error
        finally:
            del call  # the error would refer to itself

    def _begin(self, loop: asyncio.AbstractEventLoop) -> Ahead:
        if self._closed:  # while a thread was on its way here
            raise ValueError("this iterator has been closed meanwhile")
        parent, call = self._parent, self._call
        count, self._position = self._count, parent.get_state()

        async def draw() -> Call:
            nonlocal count
            drawn = Call()
            try:
                drawn.element = (count, await parent.__anext__())
                count += 1
            except StopAsyncIteration:
                drawn.done = drawn.is_last = True
            except Exception as error:
                drawn.error, drawn.done = error, True
            drawn.position = (count, parent.get_state())
            return drawn

        def begin(drawn: tuple[int, Any]) -> Awaitable[Any]:
            return call(*drawn)

        options = self._read_options or _NEVER_SAID
        width = options.num_threads if self._width is None else self._width
        self._ahead = Ahead(loop, draw, begin, width, Room(options))
        return self._ahead

    def _drop(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.stop()

    def get_state(self) -> dict[str, Any]:
        state = self._parent.get_state() if self._position is None else self._position
        return state if self._key is None else {"parent": state, self._key: self._count}

    def set_state(self, state: dict[str, Any]) -> None:
        if self._ahead is not None:
            self._drop()
            self._parent.close()
            parent = self._make_parent()
            parent._apply(self._dataset_options)
            self._parents = (parent,)
        self._position = None
        its, self._count = _split(state, self._key)
        self._parent.set_state(its)

    def _start(self, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        if self._ahead is None:
            self._begin(loop())

    def close(self) -> None:
        self._closed = True
        self._drop()
        super().close()

    async def aclose(self) -> None:
        ahead = self._ahead
        await super().aclose()
        if ahead is not None:
            await ahead.wait_ended(_LEAVE_SECONDS)

    def __del__(self) -> None:
        if self._ahead is not None:
            self._drop()
