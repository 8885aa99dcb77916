"""aioloader: the data loader for JAX programs that live in an event loop.

Names are bound when they are first used, so that ``import aioloader`` costs little and
imports no jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aioloader._device.placement import wait_ready
    from aioloader._engine.loop import run
    from aioloader._engine.statistics import LoaderStatistics
    from aioloader._executors.worker import is_worker
    from aioloader._loaders.batch import Batch, TrainingBatch, ValidationBatch
    from aioloader._loaders.group import DataGroup
    from aioloader._loaders.loader import Dataloader, Loader
    from aioloader._loaders.references import debug_batch_references
    from aioloader.errors import (
        AioLoaderError,
        BatchTimeoutError,
        CacheCorrupt,
        CacheMismatch,
        LayoutError,
        LoadError,
        StateError,
        WorkerDied,
    )

_HOMES = {
    "AioLoaderError": "errors",
    "Batch": "_loaders.batch",
    "BatchTimeoutError": "errors",
    "CacheCorrupt": "errors",
    "CacheMismatch": "errors",
    "DataGroup": "_loaders.group",
    "Dataloader": "_loaders.loader",
    "LayoutError": "errors",
    "LoadError": "errors",
    "Loader": "_loaders.loader",
    "LoaderStatistics": "_engine.statistics",
    "StateError": "errors",
    "TrainingBatch": "_loaders.batch",
    "ValidationBatch": "_loaders.batch",
    "WorkerDied": "errors",
    "debug_batch_references": "_loaders.references",
    "is_worker": "_executors.worker",
    "run": "_engine.loop",
    "wait_ready": "_device.placement",
}

__all__ = [
    "AioLoaderError",
    "Batch",
    "BatchTimeoutError",
    "CacheCorrupt",
    "CacheMismatch",
    "DataGroup",
    "Dataloader",
    "LayoutError",
    "LoadError",
    "Loader",
    "LoaderStatistics",
    "StateError",
    "TrainingBatch",
    "ValidationBatch",
    "WorkerDied",
    "debug_batch_references",
    "is_worker",
    "run",
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
