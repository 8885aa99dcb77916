"""IterDataset: elements one after the other, and the chain of methods that makes one of another."""

from __future__ import annotations

import warnings
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from aioloader._datasets.base import Dataset, require_seed
from aioloader._datasets.foreign import opened
from aioloader._datasets.iter_stages import (
    Batching,
    Each,
    Filtering,
    Iterating,
    Mixing,
    Same,
    Unknown,
    WithOptions,
)
from aioloader._datasets.map_steps import Mapped, MappedWithIndex, RandomMapped
from aioloader._datasets.options import DatasetOptions, MultiprocessingOptions
from aioloader._datasets.transforms import Filter, Map, MapWithIndex, RandomMap, adapt
from aioloader._datasets.workers import prefetch_in_workers
from aioloader._order.arguments import whole_number
from aioloader._order.reindex import Mixture, as_shares

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

    from aioloader._datasets.iter_stages import Stage
    from aioloader._datasets.iterators import DatasetIterator

__all__ = ["IterDataset", "IterDatasetMeta", "StagedIterDataset", "WithOptionsIterDataset"]

T = TypeVar("T")
S = TypeVar("S")

_DEFAULT_WORKERS = 10


class IterDatasetMeta(ABCMeta):
    """The factories of `IterDataset`: ``IterDataset.mix([...])``, and on subclasses too."""

    def mix(
        cls, datasets: Sequence[IterDataset[T]], weights: Sequence[float] | None = None
    ) -> IterDataset[T]:
        """Return a dataset that mixes others in fixed proportions.

        It ends when one of them has no more elements in its turn; `MapDataset.repeat` them
        before for an infinite mixture.

        Args:
            datasets: What is mixed.
            weights: Proportions, of any sum; equal ones by default.

        >>> from aioloader import MapDataset
        >>> ds1 = MapDataset.range(5).to_iter_dataset()
        >>> ds2 = MapDataset.range(7, 10).to_iter_dataset()
        >>> list(IterDataset.mix([ds1, ds2])) == [0, 7, 1, 8, 2, 9, 3]
        True
        """
        parts = tuple(datasets)
        for position, part in enumerate(parts):
            if not isinstance(part, IterDataset):
                raise TypeError(f"datasets[{position}] must be an IterDataset, got {part!r}")
        if not parts:
            raise ValueError("datasets is empty: there is nothing to mix")
        return StagedIterDataset(Mixing(Mixture(as_shares(weights, len(parts)))), parts)

    def source(cls, iterable: Iterable[T] | AsyncIterable[T]) -> IterDataset[T]:
        """Return a dataset of the elements of any iterable, plain or async.

        Each iterator iterates over it anew. Where what that returns has ``get_state`` and
        ``set_state``, they are used for positions; otherwise they are counts, and elements
        before are passed over.

        Args:
            iterable: What has ``__iter__`` or ``__aiter__``.

        >>> list(IterDataset.source("abc").map(str.upper))
        ['A', 'B', 'C']
        """
        if not hasattr(type(iterable), "__iter__") and not hasattr(type(iterable), "__aiter__"):
            raise TypeError(f"iterable={iterable!r} has neither __iter__ nor __aiter__")
        return StagedIterDataset(Iterating(iterable), ())


class IterDataset(Dataset, Iterable[T], Generic[T], metaclass=IterDatasetMeta):
    """A dataset of elements that come one after the other: lazy and immutable.

    ``for`` and ``async for`` make a `DatasetIterator`, whose position can be saved; so does
    ``iter(dataset)``, any number of times.

    >>> from aioloader import MapDataset
    >>> dataset = MapDataset.range(10).to_iter_dataset().filter(lambda x: x % 3 == 0).batch(3)
    >>> list(dataset)
    [array([0, 3, 6]), array([9])]

    A transform may be a coroutine function: as many calls run at once as the `ReadOptions` of
    `MapDataset.to_iter_dataset` have threads (16 by default), in order. Own datasets implement
    ``__iter__``, which returns a `DatasetIterator`, and call ``super().__init__(parents)``.

    Args:
        parents: The dataset, or the datasets, that the elements are made of.
    """

    def __init__(self, parents: Dataset | Sequence[Dataset] = ()) -> None:
        super().__init__(parents)

    @property
    def parents(self) -> Sequence[Any]:
        """The datasets that this one is made of."""
        return self._parents

    @abstractmethod
    def __iter__(self) -> DatasetIterator[T]:
        """Return a new iterator, at the first element."""

    def __aiter__(self) -> DatasetIterator[T]:
        """Return the same for ``async for``."""
        return opened(self)

    def map(self, transform: Map | Callable[[T], Any]) -> IterDataset[Any]:
        """Return a dataset of ``transform(element)``.

        Args:
            transform: A function or coroutine function, or an instance of `Map`.

        >>> from aioloader import MapDataset
        >>> ds = MapDataset.range(5).to_iter_dataset()
        >>> ds = ds.map(lambda x: x + 10)
        >>> list(ds) == [10, 11, 12, 13, 14]
        True
        """
        return StagedIterDataset(Each(Mapped(Unknown(), adapt(transform, Map, "map"))), self)

    def map_with_index(self, transform: MapWithIndex | Callable[[int, T], Any]) -> IterDataset[Any]:
        """Return a dataset of ``transform(index, element)``; the index counts elements.

        Args:
            transform: A function or coroutine function, or an instance of `MapWithIndex`.

        >>> from aioloader import MapDataset
        >>> ds = MapDataset.range(5).to_iter_dataset()
        >>> ds = ds.map_with_index(lambda i, x: (i, 2**x))
        >>> list(ds) == [(0, 1), (1, 2), (2, 4), (3, 8), (4, 16)]
        True
        """
        function = adapt(transform, MapWithIndex, "map_with_index")
        return StagedIterDataset(Each(MappedWithIndex(Unknown(), function)), self)

    def random_map(
        self, transform: RandomMap | Callable[[T, Any], Any], *, seed: int | None = None
    ) -> IterDataset[Any]:
        """Return a dataset of ``transform(element, rng)``.

        ``rng`` is a `numpy.random.Generator` that depends on the seed and on the number of
        elements before this one alone. It is used again for other elements, and must not be kept.

        Args:
            transform: A function or coroutine function, or an instance of `RandomMap`.
            seed: Chooses the random numbers; by default it follows from `seed` above.

        >>> from aioloader import MapDataset
        >>> ds = MapDataset.range(5).to_iter_dataset().seed(0)
        >>> ds = ds.random_map(lambda x, rng: x + rng.integers(5, 10))
        >>> set(ds).issubset(set(range(5, 15)))
        True
        """
        seed = require_seed("random_map", Dataset(self)._default_seed if seed is None else seed)
        seed = whole_number("seed", seed, at_least=0)
        function = adapt(transform, RandomMap, "random_map")
        return StagedIterDataset(Each(RandomMapped(Unknown(), function, seed)), self)

    def filter(self, transform: Filter | Callable[[T], Any]) -> IterDataset[T]:
        """Return a dataset of the elements that match.

        It warns where it removes 90 % of the elements and more (see `DatasetOptions`).

        Args:
            transform: A function or coroutine function, or an instance of `Filter`.

        >>> from aioloader import MapDataset
        >>> ds = MapDataset.range(5).to_iter_dataset()
        >>> ds = ds.filter(lambda x: x % 2 == 0)
        >>> list(ds) == [0, 2, 4]
        True
        """
        return StagedIterDataset(Filtering(adapt(transform, Filter, "filter")), self)

    def batch(
        self,
        batch_size: int,
        *,
        drop_remainder: bool = False,
        batch_fn: Callable[[list[T]], Any] | None = None,
    ) -> IterDataset[Any]:
        """Return a dataset of batches, in which the leaves of elements are stacked.

        Args:
            batch_size: How many elements a batch has.
            drop_remainder: Whether a last, smaller batch is left out.
            batch_fn: Makes a batch of a list of elements, in the place of stacking them.

        >>> from aioloader import MapDataset
        >>> ds = MapDataset.range(5).to_iter_dataset()
        >>> list(ds.batch(batch_size=2))
        [array([0, 1]), array([2, 3]), array([4])]
        """
        size = whole_number("batch_size", batch_size, at_least=1)
        return StagedIterDataset(Batching(size, drop_remainder, batch_fn), self)

    def seed(self, seed: int) -> IterDataset[T]:
        """Return the same elements; random stages after it derive their seeds from ``seed``.

        What they derive depends on how many stages away they are. A later call of this takes the
        place of an earlier one.
        """
        seeded: StagedIterDataset[T] = StagedIterDataset(Same(f"seed({seed})"), self)
        seeded._own_seed = whole_number("seed", seed, at_least=0)
        return seeded

    def mp_prefetch(
        self,
        options: MultiprocessingOptions | None = None,
        worker_init_fn: Callable[[int, int], None] | None = None,
    ) -> IterDataset[T]:
        """Return the same elements, made by worker processes ahead of their use.

        Elements, their order and the positions of iterators are the same for any number of
        workers.

        Args:
            options: How many workers there are, 10 by default, and how far ahead they work; none
                at all for ``num_workers=0``.
            worker_init_fn: Called in each worker before all else, with its index and their count.
        """
        options = options or MultiprocessingOptions(num_workers=_DEFAULT_WORKERS)
        if options.num_workers == 0:
            return self
        stage = prefetch_in_workers(self, options, worker_init_fn)
        made: StagedIterDataset[T] = StagedIterDataset(stage, self)
        made._steps = 0  # default seeds are those without workers
        return made

    def prefetch(self, multiprocessing_options: MultiprocessingOptions) -> IterDataset[T]:
        """Call `mp_prefetch`, which is what to write instead."""
        message = "IterDataset.prefetch is deprecated: write mp_prefetch instead"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.mp_prefetch(multiprocessing_options)

    # What follows is for stages and workers.

    _stage: Stage | None = None

    def _describe(self) -> str:
        return repr(self)


class StagedIterDataset(IterDataset[T]):
    """A dataset that is one stage after its parents; all methods return such a one."""

    _stage: Stage

    def __init__(self, stage: Stage, parents: Dataset | Sequence[Dataset]) -> None:
        super().__init__(parents)
        self._stage = stage

    def __iter__(self) -> DatasetIterator[T]:
        return self._stage.begin(self._parents)

    def __repr__(self) -> str:
        before = "IterDataset" if len(self._parents) != 1 else repr(self._parents[0])
        return f"{before}.{self._stage!r}"


@final
class WithOptionsIterDataset(StagedIterDataset[T]):
    """The parent's elements, with options for the whole pipeline.

    Args:
        parent: The dataset.
        options: What holds for it and for all that is before it, and for what comes after it as
            far as that says nothing else.

    >>> from aioloader import MapDataset
    >>> dataset = MapDataset.range(5000).to_iter_dataset().filter(lambda x: x == 4000)
    >>> options = DatasetOptions(filter_warn_threshold_ratio=None)
    >>> list(WithOptionsIterDataset(dataset, options))
    [4000]
    """

    def __init__(self, parent: IterDataset[T], options: DatasetOptions) -> None:
        if not isinstance(parent, IterDataset):
            raise TypeError(f"parent must be an IterDataset, got {parent!r}")
        super().__init__(WithOptions(options), parent)
