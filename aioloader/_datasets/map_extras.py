"""Further stages of a `MapDataset`, to be used with `pipe`: windows, tuples, several from one."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, final

from aioloader._datasets.base import Dataset, require_seed
from aioloader._datasets.map_dataset import Derived, MapDataset, as_datasets
from aioloader._datasets.map_joins import Zipped
from aioloader._datasets.map_steps import Reindexed
from aioloader._datasets.transforms import FlatMap, adapt, is_coroutine, name_of
from aioloader._order.arguments import whole_number
from aioloader._order.positions import plain
from aioloader._order.reindex import ENDLESS
from aioloader._order.shuffling import WindowShuffle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aioloader._order.positions import Positions

__all__ = ["FlatMapMapDataset", "WindowShuffleMapDataset", "ZipMapDataset"]


@final
class WindowShuffleMapDataset(Derived[Any]):
    """The elements of a dataset, shuffled within windows of neighbours.

    A window does not reach beyond the end of an epoch: each epoch has every element once.

    >>> dataset = MapDataset.range(1000).pipe(WindowShuffleMapDataset, window_size=128, seed=0)
    >>> sorted(dataset[i] for i in range(128)) == list(range(128))
    True

    Args:
        parent: The dataset.
        window_size: How many elements a window has.
        seed: From 0 to 2**32 - 1; by default it follows from `MapDataset.seed` above.
    """

    def __init__(
        self, parent: MapDataset[Any], *, window_size: int, seed: int | None = None
    ) -> None:
        (parent,) = as_datasets([parent], "parent")
        seed = Dataset(parent)._default_seed if seed is None else seed
        seed = require_seed("WindowShuffleMapDataset", seed)
        order = WindowShuffle(len(parent), window_size, seed)
        text = f"pipe(WindowShuffleMapDataset, window_size={window_size}, seed={seed})"
        super().__init__(Reindexed(parent, order, order.length, text))


@final
class ZipMapDataset(Derived[tuple[Any, ...]]):
    """Tuples of the elements that several datasets of one length have at an index.

    Where one of them has none, there is None in its place.

    >>> dataset = ZipMapDataset([MapDataset.range(3), MapDataset.source("abc")])
    >>> list(dataset)
    [(0, 'a'), (1, 'b'), (2, 'c')]

    Args:
        parents: The datasets.
    """

    def __init__(self, parents: Sequence[MapDataset[Any]]) -> None:
        super().__init__(Zipped(as_datasets(parents, "parents")))


@final
class FlatMapMapDataset(Derived[Any]):
    """Up to ``max_fan_out`` elements made of each; None stands for those that are fewer.

    An epoch is ``max_fan_out`` times as long as the parent's, and the transform is called anew
    for each index that is asked for alone.

    >>> dataset = MapDataset.range(4).pipe(FlatMapMapDataset, lambda x: [x] * x, max_fan_out=3)
    >>> len(dataset), list(dataset)
    (12, [1, 2, 2, 3, 3, 3])

    Args:
        parent: The dataset.
        transform: An instance of `FlatMap`, or a function or coroutine function that returns a
            sequence.
        max_fan_out: How many elements it may return; by default what the instance says.
    """

    def __init__(
        self,
        parent: MapDataset[Any],
        transform: FlatMap | Callable[[Any], Any],
        *,
        max_fan_out: int | None = None,
    ) -> None:
        function = adapt(transform, FlatMap, "flat_map")
        fan_out = getattr(transform, "max_fan_out", None) if max_fan_out is None else max_fan_out
        fan_out = whole_number("max_fan_out", fan_out, at_least=1)
        (parent,) = as_datasets([parent], "parent")
        super().__init__(_Fanned(parent, function, fan_out))


@final
class _Fanned:
    """Several elements in the place of one."""

    is_identity = is_quick = False
    is_sparse = True

    def __init__(self, parent: Any, function: Callable[..., Any], fan_out: int) -> None:
        self.parents: tuple[Any, ...] = (parent,)
        self.is_async = is_coroutine(function)
        self._parent = parent
        self._function = function
        self._fan_out = fan_out

    def length(self) -> int | None:
        length = self._parent._length()
        return None if length is None else min(length * self._fan_out, ENDLESS)

    def parent_indices(self, index: int) -> Sequence[tuple[int, int]]:
        return ((0, index // self._fan_out),)

    def finish(self, index: int, elements: Sequence[Any]) -> Any:
        if self.is_async:
            return self._awaited(index, elements[0])
        return self._pick(index, self._fan(index, elements[0]))

    def element(self, index: int) -> Any:
        return self._pick(index, self._fan(index, self._parent[index // self._fan_out]))

    def each(self, indices: Positions) -> Iterator[Any]:
        for place, group in itertools.groupby(plain(indices), lambda i: i // self._fan_out):
            made = self._fan(place * self._fan_out, self._parent[place])
            for index in group:
                yield self._pick(index, made)

    def stacked(self, indices: Positions) -> Any:
        return None

    def _fan(self, index: int, element: Any) -> Sequence[Any]:
        if element is None:
            return ()
        try:
            return self._checked(self._function(element))
        except Exception as error:
            self._note(error, index)
            raise

    async def _awaited(self, index: int, element: Any) -> Any:
        if element is None:
            return None
        try:
            made = self._checked(await self._function(element))
        except Exception as error:
            self._note(error, index)
            raise
        return self._pick(index, made)

    def _checked(self, made: Sequence[Any]) -> Sequence[Any]:
        if len(made) > self._fan_out:
            raise ValueError(f"flat_map returned {len(made)} elements, max_fan_out={self._fan_out}")
        return made

    def _pick(self, index: int, made: Sequence[Any]) -> Any:
        within = index % self._fan_out
        return made[within] if within < len(made) else None

    def _note(self, error: Exception, index: int) -> None:
        error.add_note(f"in flat_map({name_of(self._function)}) at index {index // self._fan_out}")

    def __repr__(self) -> str:
        text = f"{name_of(self._function)}, max_fan_out={self._fan_out}"
        return f"{self._parent._describe()}.pipe(FlatMapMapDataset, {text})"
