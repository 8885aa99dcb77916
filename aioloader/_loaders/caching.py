"""Caching: which group has which cache on disk, and which batch which entry."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, final

import anyio
import anyio.to_thread

from aioloader._caches.disk import CacheCounts, DiskCache
from aioloader._caches.encoding import encode_extras
from aioloader._caches.entry import EntryKey
from aioloader._caches.fingerprint import fingerprint
from aioloader._caches.identity import Identity
from aioloader._order.arguments import whole_number
from aioloader._order.plan import VERSION
from aioloader.errors import NotCached

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aioloader._loaders.group import DataGroup
    from aioloader._loaders.schedule import Schedule
    from aioloader.protocols import Extras, Slot, Ticket

__all__ = ["GroupCaches"]

_logger = logging.getLogger("aioloader")


@final
class _GroupCache:
    """What a session asks of one group's cache: whole batches, or none of their rows."""

    def __init__(self, group: DataGroup[Any], name: str, disk: DiskCache) -> None:
        self.disk = disk
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._readonly = group.cache_readonly
        self._allow_pickle = group.cache_policy.allow_pickle
        self._only = group.loader_layouts is None
        self._converts = group.cache_size is not None
        new_contents = ("itemwise", "reseed") if name.startswith("training") else ("itemwise",)
        self._every_epoch = group.order.shuffle_later in new_contents

    async def fetch(self, ticket: Ticket, slot: Slot) -> Sequence[int]:
        entry = await self.disk.read(self._key(ticket))
        if entry is not None:
            slot.adopt(entry.buffer, entry.offset, entry.layouts, entry.extras, self.disk.discard)
            return ()
        if self._only:
            raise NotCached(
                f"{ticket.describe()} is not in the cache, and without loader_arrays it cannot "
                "come from anywhere else",
                group=ticket.describe_group(),
                batch=ticket.group_index,
            )
        return range(ticket.rows)

    async def store(self, ticket: Ticket, slot: Slot, rows: Sequence[int]) -> None:
        if not self._converts and not self._readonly:
            encoded = await anyio.to_thread.run_sync(self._encode, slot.extras, ticket.rows)
            self.disk.write(self._key(ticket), slot.arrays, encoded, slot.hold)

    def keep(
        self, ticket: Ticket, arrays: Mapping[str, Any], extras: Mapping[str, Sequence[Any]]
    ) -> None:
        """Write a batch that the consumer has converted; callable from any thread."""
        if self._readonly:
            return
        encoded = self._encode(extras, ticket.rows)
        if threading.get_ident() == self._thread:
            self._write(ticket, arrays, encoded)
            return
        with contextlib.suppress(RuntimeError):  # the loop has been closed, and so has the cache
            self._loop.call_soon_threadsafe(self._write, ticket, arrays, encoded)

    def _write(self, ticket: Ticket, arrays: Mapping[str, Any], encoded: bytes) -> None:
        if self.disk.is_open:
            self.disk.write(self._key(ticket), arrays, encoded, None)
        else:
            _logger.warning("%s is not cached: its loader has ended", ticket.describe())

    def _encode(self, extras: Extras, rows: int) -> bytes:
        return encode_extras(extras, rows, allow_pickle=self._allow_pickle)

    def _key(self, ticket: Ticket) -> EntryKey:
        epoch = ticket.epoch if self._every_epoch else 0
        return EntryKey(epoch, ticket.group_index, ticket.rows)


@final
class GroupCaches:
    """The caches on disk of a loader's groups, while it is entered.

    Each group has a directory of its own in its location, named by its role and ordinal: so
    no group is ever served what another has written.
    """

    def __init__(self, schedule: Schedule, cachers: int | None) -> None:
        roles = (("training", schedule.training), ("validation", schedule.validation))
        named = [(f"{role}-{n}", group) for role, some in roles for n, group in enumerate(some)]
        self._cachers = _cachers(cachers)
        self._named = {
            key: (name, group)
            for key, (name, group) in enumerate(named)
            if group.cache_location is not None
        }
        self.by_layout_key: dict[int, _GroupCache] = {}

    async def open(self) -> None:
        """Open them all; raises `CacheMismatch` for one that was made under other settings."""
        self.by_layout_key.clear()
        for key, (name, group) in self._named.items():
            identity = await anyio.to_thread.run_sync(identify, group, name)
            layouts = group.cache_layouts
            location, policy = group.cache_location, group.cache_policy
            assert layouts is not None
            assert location is not None
            disk = DiskCache(
                location,
                name,
                identity,
                layouts,
                readonly=policy.readonly,
                verify=policy.verify,
                allow_pickle=policy.allow_pickle,
                cachers=self._cachers,
            )
            await disk.open()
            self.by_layout_key[key] = _GroupCache(group, name, disk)

    def keeper(self, layout_key: int) -> Any:
        """Return what writes a converted batch of a group, or None."""
        cache = self.by_layout_key.get(layout_key)
        return None if cache is None else cache.keep

    async def room(self) -> None:
        """Wait while batches that the consumer has converted are written too slowly."""
        for cache in self.by_layout_key.values():
            await cache.disk.room()

    async def flush(self) -> None:
        """Wait until everything that was to be written has been."""
        for cache in self.by_layout_key.values():
            await cache.disk.flush()

    async def aclose(self) -> None:
        """Wait for the writes, and let go of the directories."""
        async with contextlib.AsyncExitStack() as stack:
            for cache in self.by_layout_key.values():
                stack.push_async_callback(cache.disk.aclose)

    @property
    def counts(self) -> CacheCounts:
        """The sums over all groups."""
        return sum((cache.disk.counts for cache in self.by_layout_key.values()), CacheCounts())


def _cachers(count: int | None) -> int:
    # Writing keeps a core busy: one of two is left to the event loop and the workers.
    if count is None:
        return 2 if (os.cpu_count() or 1) > 2 else 1
    return whole_number("cacher_count", count, at_least=1)


def identify(group: DataGroup[Any], name: str) -> Identity:
    """Return what a group's cache must have been made with; looks at some of its items."""
    layouts = group.cache_layouts
    assert layouts is not None
    data = fingerprint(group.data, group.cache_policy.data_version)
    return Identity.of(name, group.order, layouts, data=data, version=VERSION)
