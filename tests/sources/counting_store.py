"""A store in memory that counts what it is asked for."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from aioloader.sources.errors import ObjectChanged, ObjectMissing, ShortRead
from aioloader.sources.seam import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


class CountingStore:
    """Objects in memory; ``asked`` has each range, ``heads`` and ``lists`` are counts."""

    identity = "counting://"

    def __init__(self, objects: dict[str, bytes], *, etags: bool = True) -> None:
        self.objects = dict(objects)
        self.etags = etags
        self.asked: list[tuple[str, int, int]] = []
        self.heads = self.lists = 0
        self.failing = 0  # how many of the next requests break
        self.gate: asyncio.Event | None = None  # ranges wait for it
        self.ended = 0

    def info(self, key: str) -> ObjectInfo:
        """Return what is known of an object."""
        if key not in self.objects:
            raise ObjectMissing(f"{key} is missing")
        data = self.objects[key]
        etag = hashlib.blake2b(data, digest_size=8).hexdigest() if self.etags else None
        return ObjectInfo(key, len(data), etag)

    async def get(self, key: str, *, etag: str | None = None) -> tuple[memoryview, ObjectInfo]:
        """Return a whole object."""
        info = self.info(key)
        return await self.get_range(key, 0, info.size, etag=etag), info

    async def get_range(
        self, key: str, start: int, stop: int, *, etag: str | None = None
    ) -> memoryview:
        """Return a range."""
        self.asked.append((key, start, stop))
        try:
            await (self.gate.wait() if self.gate is not None else asyncio.sleep(0))
        finally:
            self.ended += 1
        if self.failing:
            self.failing -= 1
            raise ShortRead(f"{key}: too few bytes came")
        info = self.info(key)
        if etag is not None and etag != info.etag:
            raise ObjectChanged(f"{key} is not the object that was listed")
        return memoryview(self.objects[key])[start:stop]

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object."""
        self.heads += 1
        await asyncio.sleep(0)
        return self.info(key)

    async def list(self, prefix: str = "") -> AsyncIterator[Sequence[ObjectInfo]]:
        """Yield pages of two."""
        self.lists += 1
        keys = [key for key in self.objects if key.startswith(prefix)]
        for at in range(0, len(keys), 2):
            await asyncio.sleep(0)
            yield [self.info(key) for key in keys[at : at + 2]]

    @property
    def bytes_asked(self) -> int:
        """How many bytes all ranges together had."""
        return sum(stop - start for _, start, stop in self.asked)
