"""MapDataset: lazy elements by index, and the chain of methods that makes one of another."""

from __future__ import annotations

import builtins
from abc import ABCMeta, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from aioloader._datasets.base import Dataset, require_seed
from aioloader._datasets.elements import Indexed, Staged
from aioloader._datasets.map_joins import Chosen, Selection
from aioloader._datasets.map_sources import RangeSource, Source
from aioloader._datasets.map_steps import (
    Batched,
    Filtered,
    Mapped,
    MappedWithIndex,
    RandomMapped,
    Reindexed,
)
from aioloader._datasets.options import ReadOptions
from aioloader._datasets.reading import read
from aioloader._datasets.transforms import (
    Filter,
    Map,
    MapWithIndex,
    RandomMap,
    adapt,
)
from aioloader._order.arguments import whole_number
from aioloader._order.reindex import (
    Batches,
    Concatenation,
    Mixture,
    Same,
    Slice,
    Wrapped,
    as_shares,
    repeated_length,
)
from aioloader._order.shuffling import Shuffle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioloader._datasets.iter_dataset import IterDataset
    from aioloader._datasets.iterators import DatasetIterator
    from aioloader._datasets.map_steps import Step
    from aioloader._datasets.transforms import DatasetSelectionMap

__all__ = ["Derived", "MapDataset", "MapDatasetMeta", "as_datasets"]

T = TypeVar("T")
S = TypeVar("S")


class MapDatasetMeta(ABCMeta):
    """The factories of `MapDataset`: ``MapDataset.range(5)``, and on subclasses too."""

    def source(cls, source: Any) -> MapDataset[Any]:
        """Return a dataset of the elements of ``source``.

        Args:
            source: Any object with ``__len__`` and ``__getitem__``, such as a list, an array or
                a reader of files. ``__getitem__`` may be a coroutine function. Where there is
                ``__getitems__(indices)``, batches use it.

        >>> list(MapDataset.source([1, 2, 3, 4, 5])) == [1, 2, 3, 4, 5]
        True
        """
        return Derived(Source(source))

    def range(cls, start: int, stop: int | None = None, step: int = 1) -> MapDataset[int]:
        """Return a dataset of whole numbers, as Python's ``range`` has them.

        >>> list(MapDataset.range(5)), list(MapDataset.range(2, 8, 3))
        ([0, 1, 2, 3, 4], [2, 5])
        """
        bounds = (0, start) if stop is None else (start, stop)
        return Derived(RangeSource(builtins.range(*bounds, step)))

    def concatenate(cls, datasets: Sequence[MapDataset[T]]) -> MapDataset[T]:
        """Return one dataset after the other.

        The n-th epoch of what is returned has the n-th epochs of ``datasets``. None of them may
        be infinite.

        >>> ds1 = MapDataset.range(3)
        >>> ds2 = MapDataset.range(3, 8)
        >>> list(MapDataset.concatenate([ds1, ds2])) == [0, 1, 2, 3, 4, 5, 6, 7]
        True
        """
        parts = as_datasets(datasets)
        order = Concatenation.of([len(part) for part in parts])
        return Derived(Chosen(parts, order, len(order), "concatenate"))

    def mix(
        cls, datasets: Sequence[MapDataset[T]], weights: Sequence[float] | None = None
    ) -> MapDataset[T]:
        """Return a dataset that mixes others in fixed proportions.

        It ends when the first of them is used up; `repeat` them before for an infinite mixture.
        To shuffle and keep the proportions, shuffle them before. Past its length it goes on: its
        second epoch begins where the first has ended, in each of them.

        Args:
            datasets: What is mixed; none may be empty.
            weights: Proportions, of any sum; equal ones by default.

        >>> ds1 = MapDataset.range(5)
        >>> ds2 = MapDataset.range(7, 10)
        >>> list(MapDataset.mix([ds1, ds2])) == [0, 7, 1, 8, 2, 9]
        True
        """
        parts = as_datasets(datasets)
        if not parts:
            raise ValueError("datasets is empty: there is nothing to mix")
        mixture = Mixture(as_shares(weights, len(parts)))
        lengths = [len(part) for part in parts]
        if 0 in lengths:
            raise ValueError(f"datasets[{lengths.index(0)}] is empty, and cannot be mixed")
        return Derived(Chosen(parts, mixture, mixture.length(lengths), "mix"))

    def select_from_datasets(
        cls, datasets: Sequence[MapDataset[T]], selection_map: DatasetSelectionMap
    ) -> MapDataset[T]:
        """Return elements of several datasets that ``selection_map`` chooses.

        Args:
            datasets: What is chosen from.
            selection_map: Returns for an index the position of a dataset, and an index in it. It
                is asked for any index, also past its length where this dataset is repeated.

        >>> class Backwards:
        ...     def __len__(self):
        ...         return 4
        ...     def __getitem__(self, index):
        ...         return index % 2, -1 - index // 2
        >>> low, high = MapDataset.range(5), MapDataset.range(10, 15)
        >>> list(MapDataset.select_from_datasets([low, high], Backwards()))
        [4, 14, 3, 13]
        """
        parts = as_datasets(datasets)
        selection = Selection(selection_map, len(parts))
        length = len(selection_map)
        return Derived(Chosen(parts, selection, length, "select_from_datasets", is_quick=False))


class MapDataset(Indexed, Generic[T], metaclass=MapDatasetMeta):
    """A dataset with random access: lazy, immutable, and endless.

    ``len(dataset)`` is the length of an epoch, and indices go on past it: ``dataset[len(dataset)]``
    is the first element of the second epoch, for which shuffles and random maps draw anew;
    negative indices are in epochs before the first. Where a stage leaves an element out,
    ``dataset[index]`` is None; iteration passes over it.

    >>> dataset = MapDataset.range(10).seed(42).shuffle().map(lambda x: 10 * x).batch(4)
    >>> dataset[0], len(dataset)
    (array([10, 70, 60, 90]), 3)

    A transform may be a coroutine function: ``async for`` runs many of its calls at once. Own
    datasets implement ``__len__`` and ``__getitem__``, and call ``super().__init__(parents)``.

    Args:
        parents: The dataset, or the datasets, that the elements are made of.
    """

    def __init__(self, parents: MapDataset[Any] | Sequence[MapDataset[Any]] = ()) -> None:
        super().__init__(parents)

    @property
    def parents(self) -> Sequence[MapDataset[Any]]:
        """The datasets that this one is made of."""
        return self._parents

    @abstractmethod
    def __len__(self) -> int:
        """Return the length of one epoch."""

    @overload
    def __getitem__(self, index: builtins.slice) -> MapDataset[T]: ...
    @overload
    def __getitem__(self, index: int) -> T | None: ...
    @abstractmethod
    def __getitem__(self, index: int | builtins.slice) -> MapDataset[T] | T | None:
        """Return the element at ``index``, None if it is missing, or a dataset for a slice."""

    def __iter__(self) -> DatasetIterator[T]:
        """Return an iterator over one epoch, whose state can be saved."""
        return self.to_iter_dataset().__iter__()

    def __aiter__(self) -> DatasetIterator[T]:
        """Return the same for ``async for``."""
        return self.to_iter_dataset().__aiter__()

    def to_iter_dataset(
        self, read_options: ReadOptions | None = None, *, allow_nones: bool = False
    ) -> IterDataset[T]:
        """Return one epoch for iteration, its elements made ahead of their use, in order.

        Args:
            read_options: How many are made at once, and how far ahead.
            allow_nones: Whether None stands for a missing element; by default it is left out.
        """
        return read(self, read_options or ReadOptions(), allow_nones)

    def map(self, transform: Map | Callable[[T], Any]) -> MapDataset[Any]:
        """Return a dataset of ``transform(element)``.

        Args:
            transform: A function or coroutine function, or an instance of `Map`.

        >>> ds = MapDataset.range(5)
        >>> ds = ds.map(lambda x: x + 10)
        >>> list(ds) == [10, 11, 12, 13, 14]
        True
        """
        return Derived(Mapped(self, adapt(transform, Map, "map")))

    def map_with_index(self, transform: MapWithIndex | Callable[[int, T], Any]) -> MapDataset[Any]:
        """Return a dataset of ``transform(index, element)``.

        The index is that in this dataset, and goes on past the end of an epoch.

        Args:
            transform: A function or coroutine function, or an instance of `MapWithIndex`.

        >>> ds = MapDataset.source(["a", "b", "c", "d"])
        >>> ds = ds.map_with_index(lambda i, x: x + str(i))
        >>> list(ds) == ["a0", "b1", "c2", "d3"]
        True
        """
        return Derived(MappedWithIndex(self, adapt(transform, MapWithIndex, "map_with_index")))

    def random_map(
        self, transform: RandomMap | Callable[[T, Any], Any], *, seed: int | None = None
    ) -> MapDataset[Any]:
        """Return a dataset of ``transform(element, rng)``.

        ``rng`` is a `numpy.random.Generator` that depends on the seed and on the element's index
        alone, and so is another one in each epoch. It is used again for other elements, and must
        not be kept.

        Args:
            transform: A function or coroutine function, or an instance of `RandomMap`.
            seed: Chooses the random numbers; by default it follows from `seed` above.

        >>> ds = MapDataset.range(5).seed(0)
        >>> ds = ds.random_map(lambda x, rng: x + rng.integers(5, 10))
        >>> set(ds).issubset(set(range(5, 15)))
        True
        """
        seed = require_seed("random_map", Dataset(self)._default_seed if seed is None else seed)
        function = adapt(transform, RandomMap, "random_map")
        return Derived(RandomMapped(self, function, whole_number("seed", seed, at_least=0)))

    def filter(self, transform: Filter | Callable[[T], Any]) -> MapDataset[T]:
        """Return a dataset in which elements that do not match are None.

        Its length stays the same; iteration passes over None, and warns where that is most
        of the elements (see `DatasetOptions`).

        Args:
            transform: A function or coroutine function, or an instance of `Filter`.

        >>> ds = MapDataset.range(5)
        >>> ds = ds.filter(lambda x: x % 2 == 0)
        >>> ds[2] == 2, ds[1] == None, list(ds) == [0, 2, 4]
        (True, True, True)
        """
        return Derived(Filtered(self, adapt(transform, Filter, "filter")))

    def batch(
        self,
        batch_size: int,
        *,
        drop_remainder: bool = False,
        batch_fn: Callable[[list[T]], Any] | None = None,
    ) -> MapDataset[Any]:
        """Return a dataset of batches, in which the leaves of elements are stacked.

        A batch has elements of one epoch only: `repeat` before it to batch across epochs. It
        cannot follow a filter, for which `to_iter_dataset` has to come in between.

        Args:
            batch_size: How many elements a batch has.
            drop_remainder: Whether a last, smaller batch of an epoch is left out.
            batch_fn: Makes a batch of a list of elements, in the place of stacking them.

        >>> ds = MapDataset.range(5)
        >>> list(ds.batch(batch_size=2))
        [array([0, 1]), array([2, 3]), array([4])]
        """
        batches = Batches(len(self), batch_size, drop_remainder)
        if self._is_sparse:
            raise ValueError(
                "batch cannot follow a stage that leaves elements out: write "
                "`.to_iter_dataset().batch(...)`"
            )
        return Derived(Batched(self, batches, batch_fn))

    def shuffle(self, seed: int | None = None) -> MapDataset[T]:
        """Return the same elements in another order, globally, in constant memory.

        Each epoch has an order of its own, and every element once: shuffle before `repeat`.

        Args:
            seed: From 0 to 2**32 - 1; by default it follows from `seed` above.

        >>> ds = MapDataset.range(5).shuffle(seed=42)
        >>> set(ds) == {0, 1, 2, 3, 4}, list(ds) != [0, 1, 2, 3, 4]
        (True, True)
        """
        seed = require_seed("shuffle", Dataset(self)._default_seed if seed is None else seed)
        order = Shuffle(len(self), seed)
        return Derived(Reindexed(self, order, order.length, f"shuffle(seed={seed})"))

    def slice(self, sl: builtins.slice) -> MapDataset[T]:
        """Return the elements at the indices of ``sl``; ``dataset[1:3]`` is the same.

        >>> ds = MapDataset.range(5)
        >>> list(ds.slice(slice(1, 3))) == [1, 2], list(ds[1::2]) == [1, 3]
        (True, True)
        """
        if not isinstance(sl, builtins.slice):
            raise ValueError(f"sl must be a slice, got {sl!r}")
        order = Slice.of(sl, len(self))
        text = f"slice({sl!r})"
        return Derived(Reindexed(self, order, len(order), text))

    def repeat(
        self, num_epochs: int | None = None, *, reseed_each_epoch: bool = True
    ) -> MapDataset[T]:
        """Return several epochs as one, or infinitely many, of which the length is `sys.maxsize`.

        Args:
            num_epochs: How many; all that follow for None.
            reseed_each_epoch: Whether shuffles and random maps above draw anew in each epoch.

        >>> list(MapDataset.range(5).repeat(2)) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
        True
        >>> import sys
        >>> ds = MapDataset.range(5).repeat()
        >>> len(ds) == sys.maxsize, ds[11111] == 1
        (True, True)
        """
        length = repeated_length(len(self), num_epochs)
        order = Same() if reseed_each_epoch else Wrapped(len(self))
        options = "" if reseed_each_epoch else ", reseed_each_epoch=False"
        text = f"repeat({num_epochs}{options})"
        return Derived(Reindexed(self, order, length, text))

    def seed(self, seed: int) -> MapDataset[T]:
        """Return the same elements; random stages after it derive their seeds from ``seed``.

        What they derive depends on how many stages away they are, so that a stage put in between
        changes it. A later call of this takes the place of an earlier one.
        """
        seed = whole_number("seed", seed, at_least=0)
        seeded: Derived[T] = Derived(Reindexed(self, Same(), None, f"seed({seed})"))
        seeded._own_seed = seed
        return seeded


class Derived(Staged, MapDataset[T]):
    """A dataset that is one stage after its parents; all methods return such a one."""

    def __init__(self, step: Step) -> None:
        super().__init__(step.parents)
        self._enter(step)

    def __repr__(self) -> str:
        return f"MapDataset.{self._step!r}"


def as_datasets(datasets: Sequence[MapDataset[T]], name: str = "datasets") -> tuple[Any, ...]:
    """Return datasets as a tuple, or say which of an argument is none."""
    for position, dataset in enumerate(datasets):
        if not isinstance(dataset, MapDataset):
            raise TypeError(f"{name}[{position}] must be a MapDataset, got {dataset!r}")
    return tuple(datasets)
