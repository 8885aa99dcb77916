"""Combining: several datasets side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from aioloader._datasets.foreign import opened
from aioloader._datasets.iterators import DatasetIterator

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Zipping"]


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
