"""What `MapDataset` and `IterDataset` share: parents, pipe, and where default seeds come from."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from aioloader._order.shuffling import derive_seed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["Dataset", "Run", "require_seed"]

P = ParamSpec("P")
R = TypeVar("R")


class Run(Protocol):
    """How elements are made on an event loop; `MapDataset._aget` is handed one.

    Functions of either kind are the user's: whoever implements this bounds how many run.
    """

    async def __call__(self, function: Callable[..., R], /, *args: Any) -> R:
        """Call a plain function, off the loop."""

    async def awaiting(self, function: Callable[..., Awaitable[R]], /, *args: Any) -> R:
        """Call a coroutine function, on the loop."""


class Dataset:
    """A stage of a pipeline: its parents, and the seed that stages after it start from."""

    _parents: tuple[Any, ...] = ()
    _own_seed: int | None = None
    _steps = 1  # as how many stages it counts where default seeds are derived

    def __init__(self, parents: Dataset | Sequence[Dataset] = ()) -> None:
        self._parents = (parents,) if isinstance(parents, Dataset) else tuple(parents)
        for position, parent in enumerate(self._parents):
            if not isinstance(parent, Dataset):
                raise TypeError(f"parents[{position}] must be a dataset, got {parent!r}")

    @property
    def _parent(self) -> Any:
        (parent,) = self._parents
        return parent

    @property
    def _default_seed(self) -> int | None:
        """The seed for a random stage that has none of its own, or None.

        It follows from the nearest seeds that were set above, and how many stages away each
        is.
        """
        seeds, todo = [], deque([(self, 0)])
        while todo:
            dataset, distance = todo.popleft()
            if dataset._own_seed is not None:
                seeds.append((dataset._own_seed, distance))
            else:
                further = distance + dataset._steps
                todo.extend((parent, further) for parent in dataset._parents)
        return derive_seed(seeds)

    def pipe(
        self, func: Callable[Concatenate[Self, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Return ``func(self, *args, **kwargs)``: a stage of one's own, in the chain's order.

        Args:
            func: What is called with this dataset first.
            *args: Further arguments for it.
            **kwargs: Arguments for it by name, among which may be one called ``func``.
        """
        return func(self, *args, **kwargs)


def require_seed(stage: str, seed: int | None) -> int:
    """Return ``seed``, or say that a random stage has none and what to do."""
    if seed is None:
        raise ValueError(
            f"{stage} needs a seed: pass seed=..., or call `dataset.seed(...)` before it"
        )
    return seed
