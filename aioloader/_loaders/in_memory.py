"""Minibatches of arrays that lie in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final, overload

import anyio

from aioloader._device.trees import leaves_with_paths, map_leaves
from aioloader._loaders.minibatching import check_shuffle_seed, count_minibatches, shuffled
from aioloader._order.arguments import whole_number

if TYPE_CHECKING:
    import numpy as np

__all__ = ["InMemoryDataLoader", "InMemoryMinibatches"]

PyTreeType = TypeVar("PyTreeType")


@final
@dataclass(frozen=True)
class InMemoryDataLoader(Generic[PyTreeType]):
    """Minibatches of a pytree of arrays, whose first axis counts the samples.

    >>> import numpy as np
    >>> loader = InMemoryDataLoader({"x": np.arange(10)}, minibatch_size=4)
    >>> loader.sample_count, loader.minibatch_count()
    (10, 2)
    >>> [minibatch["x"].tolist() for minibatch in loader.minibatches(shuffle_seed=0)]
    [[4, 6, 2, 7], [3, 5, 9, 0]]

    Args:
        dataset: A pytree of arrays with shapes ``(sample_count, ...)``, of numpy or of JAX.
        minibatch_size: How many samples a minibatch has.
        drop_last: Whether samples that do not fill a minibatch are left out; after the
            shuffle, so that they are others with every seed.

    Raises:
        ValueError, TypeError: An argument is wrong, or the arrays differ in their first axis.
    """

    dataset: PyTreeType
    minibatch_size: int
    drop_last: bool = True
    sample_count: int = field(init=False)

    def __post_init__(self) -> None:
        whole_number("minibatch_size", self.minibatch_size, at_least=1)
        object.__setattr__(self, "sample_count", _count_samples(self.dataset))

    def minibatch_count(self) -> int:
        """Return the number of minibatches in an epoch."""
        return count_minibatches(self.sample_count, self.minibatch_size, self.drop_last)

    def minibatches(self, shuffle_seed: int | None) -> InMemoryMinibatches[PyTreeType]:
        """Return an epoch's minibatches, in an order that ``shuffle_seed`` chooses.

        The order is that of ``numpy.random.default_rng(shuffle_seed).shuffle``, and that of
        the data for None.
        """
        check_shuffle_seed(shuffle_seed)
        return InMemoryMinibatches(self, shuffle_seed)


@final
class InMemoryMinibatches(Sequence[PyTreeType]):
    """The minibatches of one epoch: a sequence, also with ``async for``.

    Each is gathered when it is asked for: of numpy arrays in the order of the data they are
    views, otherwise copies. Under ``async for`` a thread gathers.
    """

    def __init__(self, loader: InMemoryDataLoader[PyTreeType], shuffle_seed: int | None) -> None:
        self._loader = loader
        self._shuffle_seed = shuffle_seed
        self._numbers = range(loader.minibatch_count())
        self._order: range | np.ndarray | None = None

    def __repr__(self) -> str:
        return f"<{len(self)} minibatches, shuffle_seed={self._shuffle_seed}>"

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> PyTreeType: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PyTreeType]: ...
    def __getitem__(self, index: int | slice) -> PyTreeType | Sequence[PyTreeType]:
        if isinstance(index, slice):
            part = InMemoryMinibatches(self._loader, self._shuffle_seed)
            part._numbers, part._order = self._numbers[index], self._order
            return part
        try:
            number = self._numbers[index]
        except IndexError:
            raise IndexError(f"minibatch {index} of {len(self)}") from None
        return self._gather(number)

    def __iter__(self) -> Iterator[PyTreeType]:
        return map(self._gather, self._numbers)

    def __aiter__(self) -> AsyncIterator[PyTreeType]:
        return _Gathering(self)

    def _gather(self, number: int) -> PyTreeType:
        if self._order is None:  # where two threads come here at once, both find the same
            self._order = shuffled(self._loader.sample_count, self._shuffle_seed)
        size = self._loader.minibatch_size
        taken = self._order[number * size : (number + 1) * size]
        where = slice(taken.start, taken.stop) if isinstance(taken, range) else taken
        gathered: PyTreeType = map_leaves(lambda leaf: leaf[where], self._loader.dataset)
        return gathered


@final
class _Gathering(AsyncIterator[PyTreeType]):
    """Gathers in a thread; a wait that is cancelled loses nothing."""

    def __init__(self, minibatches: InMemoryMinibatches[PyTreeType]) -> None:
        self._minibatches = minibatches
        self._position = 0

    async def __anext__(self) -> PyTreeType:
        minibatches = self._minibatches
        if self._position >= len(minibatches):
            raise StopAsyncIteration
        minibatch = await anyio.to_thread.run_sync(minibatches.__getitem__, self._position)
        self._position += 1
        return minibatch


def _count_samples(dataset: Any) -> int:
    counts: dict[str, int] = {}
    for path, leaf in leaves_with_paths(dataset):
        if not getattr(leaf, "shape", ()):
            raise ValueError(
                f"dataset{path} has no first axis that counts samples: it is "
                f"{type(leaf).__name__} of shape {getattr(leaf, 'shape', ())}"
            )
        counts[f"dataset{path}"] = leaf.shape[0]
    if not counts:
        raise ValueError("dataset holds no arrays")
    (first, count), *others = counts.items()
    for path, other in others:
        if other != count:
            raise ValueError(
                f"the first axes count samples and must agree: {first} has {count}, "
                f"and {path} has {other}"
            )
    if count == 0:
        raise ValueError(f"the dataset is empty: {first} has 0 samples")
    return count
