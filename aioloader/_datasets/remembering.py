"""Remembering: a dataset whose elements stay in RAM from one epoch to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final, overload

import anyio.to_thread

from aioloader._caches.ram import DataCache
from aioloader._datasets.map_dataset import Derived, MapDataset, as_datasets
from aioloader._datasets.map_joins import Chosen
from aioloader._datasets.map_steps import MappedWithIndex, RandomMapped, Reindexed
from aioloader._order.arguments import whole_number
from aioloader._order.reindex import ENDLESS, Concatenation, Same, Slice, Wrapped

if TYPE_CHECKING:
    import builtins
    from collections.abc import Awaitable, Callable
    from typing import Literal

    from aioloader._datasets.base import Run
    from aioloader.metrics import MetricsSink

__all__ = ["CachedMapDataset", "cached"]

_CONFIG = {"data_set": {"use_cache": True, "preload_cache": False}}
_EVERY_EPOCH_ALIKE = (Same, Wrapped, Slice, Concatenation)


@final
class CachedMapDataset(MapDataset[Any]):
    """The same elements, each made once and then remembered; see `cached`."""

    def __init__(self, parent: MapDataset[Any], **options: Any) -> None:
        (parent,) = as_datasets([parent], "dataset")
        super().__init__(parent)
        if len(parent) >= ENDLESS:
            raise ValueError(f"{parent!r} has no end, and cannot be kept: cache it, then repeat it")
        if changing := _changing(parent):
            raise ValueError(
                f"{changing!r} differs from epoch to epoch, and what is remembered would not: "
                "cache what is before it"
            )
        elements = _AwaitedElements(parent) if parent._is_async else _Elements(parent)
        self.cache = DataCache(_CONFIG, elements, **options)

    def __len__(self) -> int:
        return len(self._parent)

    @overload
    def __getitem__(self, index: builtins.slice) -> MapDataset[Any]: ...
    @overload
    def __getitem__(self, index: int) -> Any: ...
    def __getitem__(self, index: int | builtins.slice) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        if self._is_async:
            return self._parent[index]  # which says what to do, or does it; nothing is kept
        return self.cache[whole_number("index", index) % len(self)][0]

    async def _aget(self, index: int, run: Run) -> Any:
        row = await self.cache.get_or_load(index % len(self))
        return row[0]

    def __repr__(self) -> str:
        return f"{self._parent!r}.pipe(cached)"


def cached(
    dataset: MapDataset[Any],
    *,
    max_bytes: int | None = None,
    policy: Literal["lru", "fifo", "none"] = "lru",
    metrics: MetricsSink | None = None,
) -> CachedMapDataset:
    """Return a dataset that keeps its elements in a `DataCache`, its attribute ``cache``.

    For `MapDataset.pipe`, behind what is slow and before what differs from epoch to epoch, such
    as `shuffle` and `random_map`. An element is made once however many ask for it, and handed
    out as `DataCache` does: arrays read-only, containers as copies. A copy of the dataset in
    another process has a cache of its own. What is left out is remembered, too.

    Args:
        dataset: The dataset, all of whose epochs are alike.
        max_bytes: What may be kept; None for no limit.
        policy: What is given up to make room.
        metrics: Where to report to.

    Raises:
        ValueError: The dataset has no end, or its epochs differ.

    >>> from aioloader import MapDataset
    >>> ds = MapDataset.range(4).map(lambda x: x * 10).pipe(cached)
    >>> list(ds), list(ds), ds.cache.statistics().hits
    ([0, 10, 20, 30], [0, 10, 20, 30], 4)
    """
    return CachedMapDataset(dataset, max_bytes=max_bytes, policy=policy, metrics=metrics)


def _changing(dataset: Any) -> Any:
    """Return what of a pipeline is known to differ from epoch to epoch, if anything is."""
    step = dataset._step if isinstance(dataset, Derived) else None
    mapping = getattr(step, "_mapping", None)
    if isinstance(step, RandomMapped | MappedWithIndex):
        return dataset
    if isinstance(step, Reindexed | Chosen) and not isinstance(mapping, _EVERY_EPOCH_ALIKE):
        return dataset
    return next((found for p in dataset._parents if (found := _changing(p)) is not None), None)


@final
class _Threads:
    """Where functions run that must not run on the event loop."""

    async def __call__(self, function: Callable[..., Any], /, *args: Any) -> Any:
        return await anyio.to_thread.run_sync(function, *args)

    async def awaiting(self, function: Callable[..., Awaitable[Any]], /, *args: Any) -> Any:
        return await function(*args)


class _Elements:
    """A dataset as what provides a cache with rows: each element in a tuple, None as well."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Any]:
        return (self._dataset[index],)


@final
class _AwaitedElements(_Elements):
    """The same for elements that have to be awaited."""

    async def resolve_data(self, index: int) -> tuple[Any]:
        return (await self._dataset._aget(index, _Threads()),)
