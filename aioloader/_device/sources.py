"""Sources: elements drawn one by one and placed, each call an outcome, nothing raised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

import anyio

from aioloader._device.belt import LAST, Outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator

__all__ = ["AsyncSource", "Source"]

T = TypeVar("T")


@final
class Source(Generic[T]):
    """Draws from an iterable and places each element, in whichever thread calls it."""

    def __init__(self, inputs: Iterable[Any], place: Callable[[Any], T]) -> None:
        self._inputs = inputs
        self._place = place
        self._iterator: Iterator[Any] | None = None

    def draw(self) -> Outcome[T]:
        """Draw and place the next element."""
        try:
            if self._iterator is None:
                self._iterator = iter(self._inputs)
            try:
                element = next(self._iterator)
            except StopIteration as stop:
                if _comes_from_a_callback(stop, self._iterator):
                    raise
                return LAST
            return Outcome(self._place(element))
        except BaseException as error:
            return _failed(error)

    def close(self) -> None:
        """Close the iterator, where it is the iteration's own."""
        iterator, self._iterator = self._iterator, None
        if _is_to_be_closed(iterator, self._inputs):
            close = getattr(iterator, "close", None)
            if close is not None:
                close()


@final
class AsyncSource(Generic[T]):
    """Does the same with an async iterable, in one task; placing is done in a thread."""

    def __init__(self, inputs: AsyncIterable[Any], place: Callable[[Any], T] | None) -> None:
        self._inputs = inputs
        self._place = place
        self._limiter = anyio.CapacityLimiter(1)  # the program may have taken all common threads
        self._iterator: AsyncIterator[Any] | None = None

    async def draw(self) -> Outcome[T]:
        """Draw and place the next element."""
        try:
            if self._iterator is None:
                self._iterator = aiter(self._inputs)
            try:
                element = await anext(self._iterator)
            except StopAsyncIteration:
                return LAST
            if self._place is not None:
                element = await anyio.to_thread.run_sync(
                    self._place, element, limiter=self._limiter
                )
            return Outcome(element)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return Outcome(error=error)  # of the inputs' own
        except BaseException as error:
            return _failed(error)

    async def aclose(self) -> None:
        """Close the iterator, where it is the iteration's own."""
        iterator, self._iterator = self._iterator, None
        if _is_to_be_closed(iterator, self._inputs):
            aclose = getattr(iterator, "aclose", None)
            if aclose is not None:
                await aclose()


def _failed(error: BaseException) -> Outcome[Any]:
    # Raised again where the consumer is, these would be taken for the end of the data.
    if isinstance(error, StopIteration | StopAsyncIteration):
        told = RuntimeError(f"the inputs raised {type(error).__name__}")
        told.__cause__ = error
        return Outcome(error=told)
    return Outcome(error=error)


def _comes_from_a_callback(stop: StopIteration, iterator: Iterator[Any]) -> bool:
    """Tell whether it was raised by a function that a `map`, or its like, was calling.

    Generators turn such an error into RuntimeError by themselves; these let it pass as the
    end of the data. They are not written in Python, so that the first frame under this
    module's is that of the function, or of another iterator's ``__next__``.
    """
    frames = stop.__traceback__ and stop.__traceback__.tb_next
    if frames is None or type(iterator).__module__ not in ("builtins", "itertools"):
        return False
    return frames.tb_frame.f_code.co_name != "__next__"


def _is_to_be_closed(iterator: object, inputs: object) -> bool:
    # What is its own iterator may be read on by others, a loader for one; a generator that
    # something was drawn from ahead of use may not.
    return iterator is not inputs or isinstance(iterator, Generator | AsyncGenerator)
