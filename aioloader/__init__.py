"""aioloader: the data loader for JAX programs that live in an event loop.

Names are bound when they are first used, so that ``import aioloader`` costs little and
imports no jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aioloader._caches.ram import DataCache
    from aioloader._caches.statistics import CacheStatistics
    from aioloader._datasets.extras import (
        BestFitPackIterDataset,
        ConcatThenSplitIterDataset,
        FirstFitPackIterDataset,
        FlatMapIterDataset,
        InterleaveIterDataset,
        LimitIterDataset,
        RebatchIterDataset,
        RepeatIterDataset,
        UnbatchIterDataset,
        WindowShuffleIterDataset,
        ZipIterDataset,
    )
    from aioloader._datasets.iter_dataset import IterDataset, WithOptionsIterDataset
    from aioloader._datasets.iterators import DatasetIterator
    from aioloader._datasets.map_dataset import MapDataset
    from aioloader._datasets.map_extras import (
        FlatMapMapDataset,
        WindowShuffleMapDataset,
        ZipMapDataset,
    )
    from aioloader._datasets.options import DatasetOptions, MultiprocessingOptions, ReadOptions
    from aioloader._datasets.rebatching import batch_and_pad
    from aioloader._datasets.remembering import cached
    from aioloader._datasets.splitting import BOSHandling
    from aioloader._datasets.transforms import (
        DatasetSelectionMap,
        Filter,
        FilterTransform,
        FlatMap,
        FlatMapTransform,
        Map,
        MapTransform,
        MapWithIndex,
        MapWithIndexTransform,
        RandomMap,
        RandomMapTransform,
    )
    from aioloader._device.placement import wait_ready
    from aioloader._device.prefetching import prefetching_map
    from aioloader._device.sharding import sharding_map
    from aioloader._engine.loop import run
    from aioloader._engine.statistics import LoaderStatistics
    from aioloader._executors.threads import ThreadExecutor
    from aioloader._executors.worker import is_worker
    from aioloader._fetching.fetch import Fetch
    from aioloader._fetching.policy import FetchPolicy
    from aioloader._fetching.statistics import FetchStatistics
    from aioloader._loaders.batch import Batch, TrainingBatch, ValidationBatch
    from aioloader._loaders.cycling import cycled_minibatches
    from aioloader._loaders.group import DataGroup
    from aioloader._loaders.in_memory import InMemoryDataLoader
    from aioloader._loaders.loader import Dataloader, Loader
    from aioloader._loaders.minibatches import DataLoader
    from aioloader._loaders.putting import device_put
    from aioloader._loaders.references import debug_batch_references
    from aioloader.errors import (
        AioLoaderError,
        BatchTimeoutError,
        CacheCorrupt,
        CacheMismatch,
        FetchError,
        LayoutError,
        LoadError,
        StateError,
        WorkerDied,
    )
    from aioloader.protocols import DataLoaderProtocol, MapDatasetProtocol, SizedIterable

_HOMES = {
    "AioLoaderError": "errors",
    "BOSHandling": "_datasets.splitting",
    "Batch": "_loaders.batch",
    "BatchTimeoutError": "errors",
    "BestFitPackIterDataset": "_datasets.extras",
    "CacheCorrupt": "errors",
    "CacheMismatch": "errors",
    "CacheStatistics": "_caches.statistics",
    "ConcatThenSplitIterDataset": "_datasets.extras",
    "DataCache": "_caches.ram",
    "DataGroup": "_loaders.group",
    "DataLoader": "_loaders.minibatches",
    "DataLoaderProtocol": "protocols",
    "Dataloader": "_loaders.loader",
    "DatasetIterator": "_datasets.iterators",
    "DatasetOptions": "_datasets.options",
    "DatasetSelectionMap": "_datasets.transforms",
    "Fetch": "_fetching.fetch",
    "FetchError": "errors",
    "FetchPolicy": "_fetching.policy",
    "FetchStatistics": "_fetching.statistics",
    "Filter": "_datasets.transforms",
    "FilterTransform": "_datasets.transforms",
    "FirstFitPackIterDataset": "_datasets.extras",
    "FlatMap": "_datasets.transforms",
    "FlatMapIterDataset": "_datasets.extras",
    "FlatMapMapDataset": "_datasets.map_extras",
    "FlatMapTransform": "_datasets.transforms",
    "InMemoryDataLoader": "_loaders.in_memory",
    "InterleaveIterDataset": "_datasets.extras",
    "IterDataset": "_datasets.iter_dataset",
    "LayoutError": "errors",
    "LimitIterDataset": "_datasets.extras",
    "LoadError": "errors",
    "Loader": "_loaders.loader",
    "LoaderStatistics": "_engine.statistics",
    "Map": "_datasets.transforms",
    "MapDataset": "_datasets.map_dataset",
    "MapDatasetProtocol": "protocols",
    "MapTransform": "_datasets.transforms",
    "MapWithIndex": "_datasets.transforms",
    "MapWithIndexTransform": "_datasets.transforms",
    "MultiprocessingOptions": "_datasets.options",
    "RandomMap": "_datasets.transforms",
    "RandomMapTransform": "_datasets.transforms",
    "ReadOptions": "_datasets.options",
    "RebatchIterDataset": "_datasets.extras",
    "RepeatIterDataset": "_datasets.extras",
    "SizedIterable": "protocols",
    "StateError": "errors",
    "ThreadExecutor": "_executors.threads",
    "TrainingBatch": "_loaders.batch",
    "UnbatchIterDataset": "_datasets.extras",
    "ValidationBatch": "_loaders.batch",
    "WindowShuffleIterDataset": "_datasets.extras",
    "WindowShuffleMapDataset": "_datasets.map_extras",
    "WithOptionsIterDataset": "_datasets.iter_dataset",
    "WorkerDied": "errors",
    "ZipIterDataset": "_datasets.extras",
    "ZipMapDataset": "_datasets.map_extras",
    "batch_and_pad": "_datasets.rebatching",
    "cached": "_datasets.remembering",
    "cycled_minibatches": "_loaders.cycling",
    "debug_batch_references": "_loaders.references",
    "device_put": "_loaders.putting",
    "is_worker": "_executors.worker",
    "prefetching_map": "_device.prefetching",
    "run": "_engine.loop",
    "sharding_map": "_device.sharding",
    "wait_ready": "_device.placement",
}

__all__ = [
    "AioLoaderError",
    "BOSHandling",
    "Batch",
    "BatchTimeoutError",
    "BestFitPackIterDataset",
    "CacheCorrupt",
    "CacheMismatch",
    "CacheStatistics",
    "ConcatThenSplitIterDataset",
    "DataCache",
    "DataGroup",
    "DataLoader",
    "DataLoaderProtocol",
    "Dataloader",
    "DatasetIterator",
    "DatasetOptions",
    "DatasetSelectionMap",
    "Fetch",
    "FetchError",
    "FetchPolicy",
    "FetchStatistics",
    "Filter",
    "FilterTransform",
    "FirstFitPackIterDataset",
    "FlatMap",
    "FlatMapIterDataset",
    "FlatMapMapDataset",
    "FlatMapTransform",
    "InMemoryDataLoader",
    "InterleaveIterDataset",
    "IterDataset",
    "LayoutError",
    "LimitIterDataset",
    "LoadError",
    "Loader",
    "LoaderStatistics",
    "Map",
    "MapDataset",
    "MapDatasetProtocol",
    "MapTransform",
    "MapWithIndex",
    "MapWithIndexTransform",
    "MultiprocessingOptions",
    "RandomMap",
    "RandomMapTransform",
    "ReadOptions",
    "RebatchIterDataset",
    "RepeatIterDataset",
    "SizedIterable",
    "StateError",
    "ThreadExecutor",
    "TrainingBatch",
    "UnbatchIterDataset",
    "ValidationBatch",
    "WindowShuffleIterDataset",
    "WindowShuffleMapDataset",
    "WithOptionsIterDataset",
    "WorkerDied",
    "ZipIterDataset",
    "ZipMapDataset",
    "batch_and_pad",
    "cached",
    "cycled_minibatches",
    "debug_batch_references",
    "device_put",
    "is_worker",
    "prefetching_map",
    "run",
    "sharding_map",
    "wait_ready",
]

__version__ = "0.1.0"


if not TYPE_CHECKING:  # for a type checker the names above are all there are

    def __getattr__(name: str) -> Any:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'aioloader' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"aioloader.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
