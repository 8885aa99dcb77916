"""Elements by index: how stages evaluate them, called plainly or awaited on an event loop."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, final

from aioloader._datasets.base import Dataset
from aioloader._datasets.map_joins import Chosen
from aioloader._datasets.transforms import is_coroutine
from aioloader._engine.loop import new_loop
from aioloader._iterating import refuse_in_loop
from aioloader._order.arguments import whole_number
from aioloader._order.positions import plain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence

    from aioloader._datasets.base import Run
    from aioloader._datasets.map_steps import Step
    from aioloader._order.positions import Positions

__all__ = ["Indexed", "Staged"]

_AT_ONCE = 16


class Indexed(Dataset):
    """What stages, readers and workers ask of a dataset; this much is known of a user's own."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: Any) -> Any: ...

    @property
    def _is_async(self) -> bool:
        """Whether an element has to be awaited."""
        if is_coroutine(type(self).__getitem__):
            return True
        return any(parent._is_async for parent in self._parents)

    @property
    def _is_quick(self) -> bool:
        """Whether elements are there in no time, without a call of the user's code."""
        return False

    @property
    def _is_sparse(self) -> bool:
        """Whether elements may be left out."""
        return any(parent._is_sparse for parent in self._parents)

    def _length(self) -> int | None:
        """Return the length of an epoch, or None where nobody knows it."""
        return len(self)

    async def _aget(self, index: int, run: Run) -> Any:
        """Return the element at ``index`` on an event loop."""
        if is_coroutine(type(self).__getitem__):
            return await run.awaiting(self.__getitem__, index)
        return await run(self.__getitem__, index)

    def _each(self, indices: Positions) -> Iterator[Any]:
        """Return the elements at many indices, each when it is its turn."""
        return map(self.__getitem__, plain(indices))

    def _stacked(self, indices: Positions) -> Any:
        """Return the elements at many indices as one array, or None where that is no gain."""
        return None

    def _describe(self) -> str:
        return f"<{type(self).__name__}>"


class Staged(Indexed):
    """A dataset that is one stage after its parents, and leaves everything to that."""

    _step: Step

    def _enter(self, step: Step) -> None:
        self._step = step
        self._awaits = step.is_async or any(parent._is_async for parent in self._parents)
        self._quick = step.is_quick and all(parent._is_quick for parent in self._parents)
        self._sparse = step.is_sparse or any(parent._is_sparse for parent in self._parents)

    def __len__(self) -> int:
        length = self._step.length()
        if length is None:
            raise TypeError(f"{self!r} has no length: its source does not know it")
        return length

    def __getitem__(self, index: Any) -> Any:
        if type(index) is not int:
            if isinstance(index, slice):
                return self.slice(index)  # type: ignore[attr-defined]
            index = whole_number("index", index)
        return _drive(self, index) if self._awaits else self._step.element(index)

    def _parent_indices(self, index: int) -> Sequence[tuple[int, int]]:
        """Return which elements it needs: pairs of a parent's position and an index there."""
        return self._step.parent_indices(index)

    def _finish(self, index: int, elements: Sequence[Any]) -> Any:
        """Return the element that is made of those, or an awaitable of it."""
        return self._step.finish(index, elements)

    @property
    def _is_async(self) -> bool:
        return self._awaits

    @property
    def _is_quick(self) -> bool:
        return self._quick

    @property
    def _is_sparse(self) -> bool:
        return self._sparse

    def _length(self) -> int | None:
        return self._step.length()

    async def _aget(self, index: int, run: Run) -> Any:
        if self._awaits:
            return await _evaluate(self._step, index, run)
        return self._step.element(index) if self._quick else await run(self._step.element, index)

    def _each(self, indices: Positions) -> Iterator[Any]:
        return self._step.each(indices)

    def _stacked(self, indices: Positions) -> Any:
        return self._step.stacked(indices)

    def _describe(self) -> str:
        return repr(self._step)


async def _evaluate(step: Step, index: int, run: Run) -> Any:
    """Return the element of a stage, which is async or has an async one above it."""
    if step.is_identity and not step.is_quick:
        where = await run(step.parent_indices, index)  # it asks a map of the user's
    else:
        where = step.parent_indices(index)
    if len(where) == 1:
        elements = [await _of_parent(step, *where[0], run)]
    else:
        elements = await _all([_of_parent(step, part, place, run) for part, place in where])
    if step.is_async:
        return await run.awaiting(step.finish, index, elements)
    if step.is_identity or step.is_quick:
        return step.finish(index, elements)
    return await run(step.finish, index, elements)


async def _of_parent(step: Step, part: int, place: int, run: Run) -> Any:
    try:
        return await step.parents[part]._aget(place, run)
    except Exception as error:
        if isinstance(step, Chosen):
            step.note(error, part, place)
        raise


async def _all(coroutines: list[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Await all at once, to the last one; the error is that of the first that failed."""
    outcomes = await asyncio.gather(*coroutines, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


@final
class _Here:
    """Calls plain functions where it is: on a loop that waits for this one element."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def __call__(self, function: Callable[..., Any], /, *args: Any) -> Any:
        return function(*args)

    async def awaiting(self, function: Callable[..., Awaitable[Any]], /, *args: Any) -> Any:
        async with self._free:
            return await function(*args)


def _drive(dataset: Any, index: int) -> Any:
    """Return ``dataset[index]`` of a pipeline with coroutine functions, by a loop of its own."""
    refuse_in_loop(
        "async for element in dataset[index : index + 1]` or "
        "`await asyncio.to_thread(dataset.__getitem__, index)"
    )
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(dataset._aget(index, _Here()))
