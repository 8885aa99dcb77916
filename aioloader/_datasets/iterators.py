"""Iterators: what goes through an `IterDataset`, and can be saved and restored."""

from __future__ import annotations

import asyncio
import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from aioloader._datasets.checkpointing import read_state, write_state
from aioloader._datasets.driving import Driver
from aioloader._datasets.options import DatasetOptions
from aioloader._datasets.requests import OnLoop
from aioloader.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aioloader._datasets.checkpointing import PathAwaitingCreation
    from aioloader._datasets.options import ReadOptions

__all__ = ["DatasetIterator"]

T = TypeVar("T")

_LEAVE_SECONDS = 0.5


class DatasetIterator(Iterator[T], ABC, Generic[T]):
    """Goes through an `IterDataset`, with ``for`` and with ``async for``; can be saved.

    Both may be used in turn on the same iterator, by one thread or task at a time. An exception
    of a transform comes out of `next` at its element, which counts as delivered: the following
    `next` goes on behind it. A cancelled ``anext`` loses nothing: the following one returns
    what it would have returned.

    An iterator of your own calls ``super().__init__(parents)`` and implements `get_state`,
    `set_state`, and one of ``__next__`` (which calls ``next(self._parent)``) and ``__anext__``
    (which awaits ``anext(self._parent)``).
    """

    _parents: tuple[DatasetIterator[Any], ...] = ()
    _driver: Driver | None = None
    _closed = False
    _inside: Any = None  # the thread or task in which a class's own method runs

    # Whether it waits for tasks on an event loop, itself or below it.
    _is_async = False
    # Whether it waits for threads, processes or tasks, itself or below it.
    _waits = False
    # Whether `_advance` neither runs code of the user's nor takes long, and so may run on a loop.
    _loop_safe = False
    _read_options: ReadOptions | None = None
    _dataset_options = DatasetOptions()

    def __init__(self, parents: DatasetIterator[Any] | Sequence[DatasetIterator[Any]] = ()) -> None:
        self._parents = (parents,) if isinstance(parents, DatasetIterator) else tuple(parents)
        self._is_async = type(self)._is_async or any(p._is_async for p in self._parents)
        self._waits = type(self)._waits or any(p._waits for p in self._parents)
        for parent in self._parents:
            self._read_options = self._read_options or parent._read_options
            self._dataset_options = self._dataset_options.updated(parent._dataset_options)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if "__next__" in own:
            _adopt_next(cls, own["__next__"])
        elif "__anext__" in own:
            _adopt_anext(cls, own["__anext__"])
        if "get_state" in own:
            cls.get_state = _get_state(own["get_state"])  # type: ignore[method-assign, assignment]
        if "set_state" in own:
            cls.set_state = _set_state(own["set_state"])  # type: ignore[method-assign, assignment]

    async def _advance(self) -> T:
        """Return the next element, or raise :class:`StopAsyncIteration`.

        The one method that a step of the package implements for both kinds of iteration. It
        gets elements by ``await self._parent._advance()``, calls functions of the user's
        directly, and awaits nothing but that and requests (see `requests`). The position must
        have moved behind the element when an exception of the user's comes out of it.
        """
        raise TypeError(f"{type(self).__name__} has no __next__")

    @abstractmethod
    def get_state(self) -> dict[str, Any]:
        """Return the position behind the last element that was delivered.

        It is what `json.dumps` takes, and not to be written to; its keys and types are the same
        at all times.
        """

    @abstractmethod
    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position that `get_state` has returned, of this iterator or of its like."""

    def _apply(self, options: DatasetOptions) -> None:
        """Have these options hold here and above, before those that have been said there."""
        self._dataset_options = self._dataset_options.updated(options)
        for parent in self._parents:
            parent._apply(options)

    @property
    def _parent(self) -> DatasetIterator[Any]:
        (parent,) = self._parents
        return parent

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._driver is None:
            self._driver = Driver()
        return self._driver.next(self)  # type: ignore[no-any-return]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._driver is None:
            self._driver = Driver()
        return await self._driver.anext(self)  # type: ignore[no-any-return]

    async def save(self, directory: PathAwaitingCreation) -> Coroutine[Any, Any, None]:
        """Save the state of this moment for Orbax, whose `StatefulCheckpointable` this is.

        Returns a coroutine that writes the file, and may be awaited on any loop, later.
        """
        return write_state(self.get_state(), directory)

    async def load(self, directory: Any) -> Coroutine[Any, Any, None]:
        """Return a coroutine that reads what `save` has written, and goes to that position."""
        return read_state(directory, self.set_state)

    def start_prefetch(self) -> None:
        """Begin to make elements, where they are made ahead of use; harmless to repeat.

        Coroutine functions are called on the running loop; where there is none, on one in
        a thread, for iteration with a plain ``for``.
        """
        if self._driver is None:
            self._driver = Driver()
        self._driver.start(self)

    def _start(self, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        """Begin to work ahead; what needs a loop for it asks for one."""
        for parent in self._parents:
            if type(parent).start_prefetch is DatasetIterator.start_prefetch:
                parent._start(loop)
            else:
                parent.start_prefetch()

    def close(self) -> None:
        """Give back threads, tasks and processes without waiting for a transform that is stuck.

        Harmless to repeat. `next` is a :class:`ValueError` from then on; `get_state` is not.
        """
        self._closed = True
        for parent in self._parents:
            parent.close()
        if self._driver is not None:
            self._driver.close()

    async def aclose(self) -> None:
        """Do the same, and wait a moment for tasks to end."""
        self.close()
        if self._driver is not None:
            await self._driver.left(_LEAVE_SECONDS)
        for parent in self._parents:
            await parent.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


def _adopt_next(cls: Any, own: Callable[[Any], Any]) -> None:
    """Have `_advance` call a class's own ``__next__``, and ``__next__`` drive `_advance`."""

    @functools.wraps(own)
    def __next__(self: DatasetIterator[Any]) -> Any:
        if self._inside == threading.get_ident():  # a class below calls it by `super`
            return own(self)
        return DatasetIterator.__next__(self)

    async def _advance(self: DatasetIterator[Any]) -> Any:
        self._inside = threading.get_ident()
        try:
            return own(self)
        except StopIteration:  # which may not leave a coroutine
            raise StopAsyncIteration from None
        finally:
            self._inside = None

    cls.__next__, cls._advance = __next__, _advance


def _adopt_anext(cls: Any, own: Callable[[Any], Awaitable[Any]]) -> None:
    """Do the same for ``__anext__``."""

    @functools.wraps(own)
    async def __anext__(self: DatasetIterator[Any]) -> Any:
        if self._inside is asyncio.current_task():
            return await own(self)
        return await DatasetIterator.__anext__(self)

    async def call(self: DatasetIterator[Any]) -> Any:
        self._inside = asyncio.current_task()
        try:
            return await own(self)
        finally:
            self._inside = None

    async def _advance(self: DatasetIterator[Any]) -> Any:
        return await OnLoop(functools.partial(call, self))

    cls.__anext__, cls._advance = __anext__, _advance
    cls._is_async = cls._waits = True


def _get_state(own: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """Wrap a class's own method: what is made but not delivered does not count."""

    @functools.wraps(own)
    def get_state(self: DatasetIterator[Any]) -> dict[str, Any]:
        state = None if self._driver is None else self._driver.position()
        return own(self) if state is None else state

    return get_state


def _set_state(own: Callable[[Any, dict[str, Any]], None]) -> Callable[[Any, Any], None]:
    """Wrap a class's own method: what is made but not delivered is dropped first."""

    def apply(self: DatasetIterator[Any], state: dict[str, Any]) -> None:
        try:
            own(self, state)
        except (KeyError, TypeError) as error:
            raise StateError(f"a state of another pipeline: {state!r}") from error

    @functools.wraps(own)
    def set_state(self: DatasetIterator[Any], state: dict[str, Any]) -> None:
        if self._driver is None:
            apply(self, state)
        else:
            self._driver.restore(state, functools.partial(apply, self, state))

    return set_state
