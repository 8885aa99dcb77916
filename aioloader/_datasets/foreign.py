"""Foreign iterators: those of any iterable, plain or async, with a state or a count."""

from __future__ import annotations

import contextlib
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, final, runtime_checkable

from aioloader._datasets.iterators import DatasetIterator
from aioloader._datasets.requests import OnLoop
from aioloader.errors import StateError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

__all__ = ["AsyncIteratorOf", "PlainIterator", "opened"]

T = TypeVar("T")


@runtime_checkable
class Restorable(Protocol):
    """An iterator with a state."""

    def get_state(self) -> Any: ...
    def set_state(self, state: Any, /) -> Any: ...


def opened(dataset: Any) -> DatasetIterator[Any]:
    """Return a new iterator over a dataset, of whatever kind its ``__iter__`` returns them."""
    iterator = iter(dataset)
    if isinstance(iterator, DatasetIterator):
        return iterator
    return PlainIterator(lambda: iter(dataset), iterator)


class _Counting(DatasetIterator[T]):
    """An iterator that is begun when it is first asked, and restored by its state or its count."""

    def __init__(self, begin: Callable[[], Any], begun: Any = None) -> None:
        super().__init__()
        self._make = begin
        self._inner = begun
        self._count = 0
        self._skip = 0

    def get_state(self) -> dict[str, Any]:
        inner = self._begun()
        own = inner.get_state() if isinstance(inner, Restorable) else None
        return {"count": self._count, "state": own}

    def set_state(self, state: dict[str, Any]) -> None:
        count, own = state["count"], state["state"]
        before, self._inner = self._inner, self._make()
        if isinstance(self._inner, Restorable):
            self._inner.set_state(own)
            self._skip = 0
        elif self._inner is not before:
            self._skip = count
        elif count >= self._count:  # an iterator that is its own iterable goes on, and never back
            self._skip += count - self._count
        else:
            raise StateError(
                f"{self._inner!r} is at {self._count} and cannot go back to {count}: give a source "
                "that can be iterated over anew"
            )
        self._count = count

    def _begun(self) -> Any:
        if self._inner is None:
            self._inner = self._make()
        return self._inner

    def close(self) -> None:
        super().close()
        if isinstance(self._inner, GeneratorType):
            with contextlib.suppress(ValueError):  # it runs, in the thread of another iterator
                self._inner.close()


@final
class PlainIterator(_Counting[T]):
    """Goes through a plain iterator."""

    async def _advance(self) -> T:
        inner: Iterator[T] = self._begun()
        try:
            while self._skip:
                self._skip -= 1
                with contextlib.suppress(Exception):  # it was delivered, too
                    next(inner)
            element = next(inner)
        except StopIteration:
            raise StopAsyncIteration from None
        except Exception:
            self._count += 1
            raise
        self._count += 1
        return element


@final
class AsyncIteratorOf(_Counting[T]):
    """Goes through an async iterator, on the loop."""

    _is_async = _waits = _loop_safe = True

    async def _advance(self) -> T:
        inner: AsyncIterator[T] = self._begun()
        try:
            while self._skip:
                self._skip -= 1
                with contextlib.suppress(Exception):  # it was delivered, too
                    await OnLoop(inner.__anext__)
            element = await OnLoop(inner.__anext__)
        except StopAsyncIteration:
            raise
        except Exception:
            self._count += 1
            raise
        self._count += 1
        return element  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """Close an async generator, too."""
        self.close()
        if isinstance(self._inner, AsyncGeneratorType):
            with contextlib.suppress(RuntimeError):  # it runs, in a task that goes on
                await self._inner.aclose()
