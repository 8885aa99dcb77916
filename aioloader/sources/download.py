"""Downloads: whole objects as files of a directory, for what reads nothing but files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import xxhash
from anyio import to_thread

from aioloader._caches.directory import Directory
from aioloader._caches.writing import Temporary, sweep
from aioloader.sources.flights import Flights
from aioloader.sources.ranges import in_order

if TYPE_CHECKING:
    from aioloader.sources.ranges import Ranges
    from aioloader.sources.seam import ObjectInfo

__all__ = ["Downloads"]

_PART = 8 * 1024 * 1024
_PARTS_AT_ONCE = 4
_FILES_AT_ONCE = 4
_ODD = re.compile(r"[^A-Za-z0-9._-]")


@final
class Downloads:
    """Objects of a store as files, each downloaded once, by ranges under the store's policy.

    A file is there whole or not at all, under a name that tells store, key, size and ETag;
    several processes may share the directory. What a killed one left unfinished is removed.
    """

    def __init__(self, ranges: Ranges, directory: str | os.PathLike[str]) -> None:
        self._ranges = ranges
        self._directory = Path(directory).absolute()
        self._flights: Flights[ObjectInfo, Path] = Flights(self._get, at_once=_FILES_AT_ONCE)

    def __reduce__(self) -> tuple[Any, ...]:
        return Downloads, (self._ranges, self._directory)

    def path(self, info: ObjectInfo) -> Path:
        """Return where an object's file is, or will be."""
        told = repr((self._ranges.store.identity, info.key, info.size, info.etag))
        name = _ODD.sub("_", info.key.rpartition("/")[2])[-100:]
        return self._directory / f"{xxhash.xxh3_128_hexdigest(told.encode())}-{name}"

    async def get(self, info: ObjectInfo) -> Path:
        """Return an object's file, and download it if need be."""
        return await self._flights.get(info)

    async def _get(self, info: ObjectInfo) -> Path:
        path = self.path(info)
        if await to_thread.run_sync(_has, path, info.size):
            return path
        unfinished = await to_thread.run_sync(_begin, self._directory)
        try:
            descriptor = await to_thread.run_sync(unfinished.open)
            unfinished.lock()

            async def part(start: int) -> None:
                stop = min(start + _PART, info.size)
                payload = await self._ranges.read_alone(info, start, stop)
                await to_thread.run_sync(_write, descriptor, payload, start)

            starts = range(0, info.size, _PART)
            await in_order(part, starts, at_once=_PARTS_AT_ONCE)
            await to_thread.run_sync(os.fsync, descriptor)
            folder = await to_thread.run_sync(Directory.open, self._directory)
            try:
                unfinished.replace(folder, path.name)
            finally:
                folder.close()
        finally:
            unfinished.end()
        return path


def _begin(path: Path) -> Temporary:
    directory = Directory.open(path, create=True)
    try:
        sweep(directory)
        return Temporary(directory)
    finally:
        directory.close()


def _has(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _write(descriptor: int, payload: memoryview, start: int) -> None:
    while payload:
        written = os.pwrite(descriptor, payload, start)
        payload, start = payload[written:], start + written
