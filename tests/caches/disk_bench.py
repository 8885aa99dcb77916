"""What the tests of the disk cache share: a group's cache, batches for it, and its files."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from aioloader._caches.disk import DiskCache
from aioloader._caches.entry import EntryKey
from aioloader._caches.identity import Identity
from aioloader._memory.declaring import make_layouts
from aioloader._memory.layout import view

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from aioloader._caches.entry import Entry
    from aioloader.protocols import Layouts

NAME = "training-0"
ROWS = 4
ARRAYS = {
    "image": ((50, 31), "uint8", "float32"),
    "weight": ((3,), "bfloat16", "bfloat16"),
    "label": ((), "int64", "int32"),
}
IDENTITY = Identity(
    name=NAME,
    batch_size=ROWS,
    length=100,
    drop_remainder=False,
    seed=7,
    shuffle_first=False,
    shuffle_later="batchwise",
    arrays=(("uint8", ROWS * 1550), ("bfloat16", ROWS * 3), ("int64", ROWS)),
    data="version 1",
    order=1,
)


def layouts_of(arrays: Mapping[str, Any] = ARRAYS, rows: int = ROWS) -> Layouts:
    return make_layouts(arrays, rows, "cache_arrays")


def identity(**changes: Any) -> Identity:
    """Return the identity, with other settings."""
    return msgspec.structs.replace(IDENTITY, **changes)


def disk_cache(location: Path, **options: Any) -> DiskCache:
    """Return a cache that has not been opened."""
    made_with = options.pop("identity", IDENTITY)
    layouts = options.pop("layouts", None) or layouts_of()
    settings = {"readonly": False, "verify": True, "allow_pickle": False, **options}
    return DiskCache(location, settings.pop("name", NAME), made_with, layouts, **settings)


@contextlib.asynccontextmanager
async def opened(location: Path, **options: Any) -> AsyncIterator[DiskCache]:
    """Yield a cache that is open."""
    cache = disk_cache(location, **options)
    await cache.open()
    try:
        yield cache
    finally:
        await cache.aclose()


def key(index: int = 0, epoch: int = 0, rows: int = ROWS) -> EntryKey:
    return EntryKey(epoch, index, rows)


def batch(of: EntryKey, layouts: Layouts | None = None) -> dict[str, np.ndarray]:
    """Return arrays whose every byte depends on which batch they are."""
    layouts = layouts or layouts_of(rows=of.rows)
    random = np.random.default_rng([*of])
    arrays = {}
    for name, a in layouts.items():
        some = random.bytes(a.count * a.numpy_dtype.itemsize)
        arrays[name] = np.frombuffer(some, a.numpy_dtype, a.count).reshape(a.shape)
    return arrays


def extras(of: EntryKey) -> dict[str, list[Any]]:
    return {"name": [f"{of} {row}" for row in range(of.rows)], "at": [(of.epoch, None)] * of.rows}


def raw(arrays: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


def content(entry: Entry) -> dict[str, bytes]:
    """Return the bytes of an entry's arrays."""
    return raw(view(entry.buffer, entry.layouts, entry.offset))


def is_right(entry: Entry, of: EntryKey) -> bool:
    """Tell whether it is what `fill` writes under that key."""
    return content(entry) == raw(batch(of)) and entry.extras == extras(of)


async def fill(cache: DiskCache, *keys: EntryKey) -> None:
    """Write batches, and wait for it."""
    for each in keys:
        cache.write(each, batch(each), extras(each), None)
    await cache.flush()


def path_of(location: Path, of: EntryKey) -> Path:
    return location.joinpath(NAME, *of.path)


def age_of(path: Path) -> float:
    """Return the seconds since a file was changed."""
    return time.time() - path.stat().st_ctime


def unfinished(location: Path) -> list[str]:
    return [path.name for path in Path(location).rglob(".*")]


class Warnings(logging.Handler):
    """What the caches have logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def __enter__(self) -> list[str]:
        logging.getLogger("aioloader.cache").addHandler(self)
        return self.texts

    def __exit__(self, *exc: object) -> None:
        logging.getLogger("aioloader.cache").removeHandler(self)
