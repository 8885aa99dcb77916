"""Transforms: classes with a method for one element, and what a stage calls in the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, final

from aioloader._executors.recipes import is_coroutine_function as is_coroutine
from aioloader._order.arguments import whole_number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

__all__ = [
    "Batch",
    "DatasetSelectionMap",
    "Filter",
    "FilterTransform",
    "FlatMap",
    "FlatMapTransform",
    "Map",
    "MapTransform",
    "MapWithIndex",
    "MapWithIndexTransform",
    "RandomMap",
    "RandomMapTransform",
    "adapt",
    "is_coroutine",
    "name_of",
]


class Map(ABC):
    """A transform for ``dataset.map``; `map` may be a coroutine function.

    >>> from aioloader import MapDataset
    >>> class Twice(Map):
    ...     def map(self, element):
    ...         return 2 * element
    >>> list(MapDataset.range(3).map(Twice()))
    [0, 2, 4]
    """

    @abstractmethod
    def map(self, element: Any) -> Any:
        """Return the new element."""


class MapWithIndex(ABC):
    """A transform for ``dataset.map_with_index``; its method may be a coroutine function."""

    @abstractmethod
    def map_with_index(self, index: int, element: Any) -> Any:
        """Return the new element for the one at ``index``."""


class RandomMap(ABC):
    """A transform for ``dataset.random_map``; its method may be a coroutine function."""

    @abstractmethod
    def random_map(self, element: Any, rng: np.random.Generator) -> Any:
        """Return the new element; randomness comes from ``rng``, which is not to be kept."""


class Filter(ABC):
    """A transform for ``dataset.filter``; its method may be a coroutine function."""

    @abstractmethod
    def filter(self, element: Any) -> bool:
        """Tell whether the element is kept."""


class FlatMap(ABC):
    """A transform that makes up to ``max_fan_out`` elements of one."""

    max_fan_out: int

    @abstractmethod
    def flat_map(self, element: Any) -> Sequence[Any]:
        """Return the new elements."""


MapTransform = Map
MapWithIndexTransform = MapWithIndex
RandomMapTransform = RandomMap
FilterTransform = Filter
FlatMapTransform = FlatMap


@final
@dataclass(frozen=True)
class Batch:
    """A call of ``dataset.batch``, as a value for `pipe`.

    >>> from aioloader import MapDataset
    >>> list(MapDataset.range(5).pipe(Batch(2, drop_remainder=True)))
    [array([0, 1]), array([2, 3])]
    """

    batch_size: int
    drop_remainder: bool = False
    batch_fn: Callable[[Sequence[Any]], Any] | None = None

    def __post_init__(self) -> None:
        whole_number("batch_size", self.batch_size, at_least=1)

    def __call__(self, dataset: Any) -> Any:
        """Return the dataset of batches."""
        return dataset.batch(
            self.batch_size, drop_remainder=self.drop_remainder, batch_fn=self.batch_fn
        )


class DatasetSelectionMap(ABC):
    """Which element of which dataset is at each index, for `MapDataset.select_from_datasets`.

    `__getitem__` is called with whatever index the dataset is: also with one from
    ``len(self)`` on, where the dataset is repeated, or with a negative one.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Return the length of the dataset."""

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[int, int]:
        """Return the position of a dataset, and the index of an element in it."""


def adapt(transform: Any, kind: type, method: str) -> Callable[..., Any]:
    """Return what a stage calls: the method of an instance of ``kind``, or a callable itself."""
    if isinstance(transform, type) and issubclass(transform, kind):
        raise TypeError(f"transform={transform!r} is a class: pass an instance of it")
    if isinstance(transform, kind) or (not callable(transform) and hasattr(transform, method)):
        return getattr(transform, method)  # type: ignore[no-any-return]
    if not callable(transform):
        raise TypeError(
            f"transform={transform!r} is neither callable nor an instance of {kind.__name__}"
        )
    return transform  # type: ignore[no-any-return]


def name_of(function: Callable[..., Any]) -> str:
    """Return how a function is called in messages."""
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(owner, (type, ModuleType)):
        return f"{type(owner).__name__}()"
    return getattr(function, "__qualname__", None) or repr(function)
