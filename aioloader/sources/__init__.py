"""Sources of remote data: what is far away, fetched asynchronously under one policy.

Names are bound when they are first used, so that none of the clients is imported before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aioloader.sources.adapters import CallableStore, FsspecStore
    from aioloader.sources.array_record import ArrayRecordSource
    from aioloader.sources.errors import (
        ChecksumMismatch,
        IndexDamaged,
        ObjectChanged,
        ObjectMissing,
        ShortRead,
        StoreError,
    )
    from aioloader.sources.object_store import ObjectStore
    from aioloader.sources.objects import ObjectStoreSource
    from aioloader.sources.parquet import ParquetSource
    from aioloader.sources.seam import ObjectInfo, Store
    from aioloader.sources.shard_errors import ShardError
    from aioloader.sources.store import open_store
    from aioloader.sources.tar import TarSource
    from aioloader.sources.tar_headers import Member, TarScan
    from aioloader.sources.tar_index import TarIndex
    from aioloader.sources.tier import LocalTier, TierStatistics

_HOMES = {
    "ArrayRecordSource": "array_record",
    "CallableStore": "adapters",
    "ChecksumMismatch": "errors",
    "FsspecStore": "adapters",
    "IndexDamaged": "errors",
    "LocalTier": "tier",
    "Member": "tar_headers",
    "ObjectChanged": "errors",
    "ObjectInfo": "seam",
    "ObjectMissing": "errors",
    "ObjectStore": "object_store",
    "ObjectStoreSource": "objects",
    "ParquetSource": "parquet",
    "ShardError": "shard_errors",
    "ShortRead": "errors",
    "Store": "seam",
    "StoreError": "errors",
    "TarIndex": "tar_index",
    "TarScan": "tar_headers",
    "TarSource": "tar",
    "TierStatistics": "tier",
    "open_store": "store",
}

__all__ = [
    "ArrayRecordSource",
    "CallableStore",
    "ChecksumMismatch",
    "FsspecStore",
    "IndexDamaged",
    "LocalTier",
    "Member",
    "ObjectChanged",
    "ObjectInfo",
    "ObjectMissing",
    "ObjectStore",
    "ObjectStoreSource",
    "ParquetSource",
    "ShardError",
    "ShortRead",
    "Store",
    "StoreError",
    "TarIndex",
    "TarScan",
    "TarSource",
    "TierStatistics",
    "open_store",
]


if not TYPE_CHECKING:  # for a type checker the names above are all there are

    def __getattr__(name: str) -> Any:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'aioloader.sources' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"aioloader.sources.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
