"""ObjectStoreSource: the objects of a store as a sequence, fetched asynchronously."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self, final

import anyio

from aioloader._fetching.fetch import Fetch
from aioloader._fetching.policy import FetchPolicy
from aioloader.sources.checksums import checksum_of, require_checksum
from aioloader.sources.index import load_index, save_index
from aioloader.sources.keys import Keys, Wanted, as_wanted
from aioloader.sources.listing import chooser, list_keys
from aioloader.sources.object_store import ObjectStore
from aioloader.sources.pieces import require_length
from aioloader.sources.ranges import row_number
from aioloader.sources.store import open_store
from aioloader.sources.tier_entry import TierKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

    from aioloader._fetching.statistics import FetchStatistics
    from aioloader.sources.checksums import Checksums
    from aioloader.sources.seam import Store
    from aioloader.sources.tier import LocalTier

__all__ = ["ObjectStoreSource"]

_SPARE_SECONDS = 30.0


@final
class ObjectStoreSource:
    """Objects of a store, each fetched when it is asked for, as a read-only view of its bytes::

        source = await ObjectStoreSource.listed("s3://bucket/images/", pattern="**/*.jpg")
        group = DataGroup(64, range(len(source)), loader_arrays=...)
        async with source, Loader(decode, group, fetch=source.fetch) as loader: ...

        images = MapDataset.source(source).map(decode)

    ``await source[index]`` is one object; ``source.fetch`` takes an index, a key, or
    ``(key, start, stop)``. Sizes and ETags that were listed are checked with each. A source is
    picklable: clients are made where they are used. A pickled one has the ``options``, and in
    the URL whatever credentials that has; nothing else shows them.

    Args:
        url: A URL or a path (see `ObjectStore`), or a store, whatever `open_store` takes.
        keys: Keys relative to the URL, or ``(key, start, stop)`` for a range of bytes.
        prefix: What the keys begin with, of those that are given.
        pattern: A glob that whole keys match, of those that are given (see `pattern_regex`).
        policy: How to fetch.
        index: In place of ``keys``, the path of an index file (see `save_index`).
        tier: Where fetched objects are kept, so that they are fetched once; closed with the
            source.
        checksums: ``"sha256:…"`` (or crc32, md5, sha1, xxh3, xxh3_128, xxh64) by what
            ``keys`` has; or a function from that to it, or to None.
        options: Passed on to obstore with a URL: credentials, an endpoint and the like.

    Raises:
        ValueError, TypeError: An argument is wrong; the message names it.
        IndexDamaged: The index is none, or damaged.
    """

    def __init__(
        self,
        url: Any,
        *,
        keys: Iterable[Any] | None = None,
        prefix: str = "",
        pattern: str | None = None,
        policy: FetchPolicy | None = None,
        index: str | os.PathLike[str] | None = None,
        tier: LocalTier | None = None,
        checksums: Checksums | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if (keys is None) == (index is None):
            raise ValueError(
                "give either keys or index, or have the keys listed: "
                "await ObjectStoreSource.listed(url, prefix, pattern)"
            )
        if isinstance(keys, str):
            raise TypeError(f"keys={keys!r} must be several keys, not one text")
        if policy is not None and not isinstance(policy, FetchPolicy):
            raise TypeError(f"policy={policy!r} must be a FetchPolicy")
        self._policy = policy or FetchPolicy()
        self._store = _store_of(url, self._policy, options)
        self._owns_store = self._store is not url
        if index is not None:
            self._keys = load_index(index)
        else:
            self._keys = keys if isinstance(keys, Keys) else Keys.of(keys or ())
        if prefix or pattern is not None:
            self._keys = self._keys.where(chooser(prefix, pattern))
        self._tier = tier
        self._checksums = checksums
        self.fetch = self._make_fetch()

    @classmethod
    async def listed(
        cls, url: Any, prefix: str = "", pattern: str | None = None, **options: Any
    ) -> Self:
        """Return a source of the objects in a store, in the order of their keys.

        Args:
            url: As for the source itself.
            prefix: What the keys begin with.
            pattern: A glob that whole keys match.
            options: As for the source itself: ``policy``, ``tier`` and the like.

        Raises:
            StoreError: The store cannot be listed.
            ValueError: There is no such object.
        """
        source = cls(url, keys=(), **options)
        try:
            source._keys = await list_keys(source._store, prefix, pattern)
            if not len(source):
                chosen = f"prefix={prefix!r}" + ("" if pattern is None else f", {pattern=}")
                raise ValueError(f"{source._shown} has no object of {chosen}")
        except BaseException:
            with anyio.CancelScope(shield=True):
                await source.aclose()
            raise
        return source

    @classmethod
    def from_index(cls, path: str | os.PathLike[str], url: Any, **options: Any) -> Self:
        """Return a source of the objects in an index that was saved."""
        return cls(url, index=path, **options)

    async def save_index(self, path: str | os.PathLike[str]) -> None:
        """Write the keys to a file, with what is known of them, in place of one that is there.

        It holds neither the URL nor options.
        """
        await anyio.to_thread.run_sync(save_index, self._keys, path)

    def __repr__(self) -> str:
        return f"<ObjectStoreSource of {self._shown}: {len(self):,} objects>"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "fetch"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.fetch = self._make_fetch()

    def __len__(self) -> int:
        return len(self._keys)

    async def __getitem__(self, index: int) -> memoryview:
        """Return an object; raises `FetchError` where it could not be fetched."""
        return await self.fetch(row_number(index, len(self)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of connections, and write what the tier is to keep; it may be used again."""
        try:
            if self._tier is not None:
                await self._tier.aclose()
        finally:
            if self._owns_store and isinstance(self._store, ObjectStore):
                await self._store.aclose()

    @property
    def keys(self) -> Keys:
        """The keys, a sequence of texts."""
        return self._keys

    @property
    def sizes(self) -> np.ndarray | None:
        """Sizes of the objects, -1 where unknown; None where none is known."""
        return self._keys.sizes

    @property
    def identity(self) -> str:
        """What tells the store from others, without credentials."""
        return self._store.identity

    @property
    def store(self) -> Store:
        """The store, of which each call is one attempt."""
        return self._store

    def statistics(self) -> FetchStatistics:
        """Return a snapshot of what has been fetched."""
        return self.fetch.statistics()

    async def flush(self) -> None:
        """Wait until the tier has written what was fetched."""
        if self._tier is not None:
            await self._tier.flush()

    @property
    def _shown(self) -> str:
        return self._store.shown if isinstance(self._store, ObjectStore) else repr(self._store)

    def _make_fetch(self) -> Fetch[Any, memoryview]:
        local = None if self._tier is None else self._kept
        return Fetch(self._request, self._policy, name=self._name, local=local)

    def _wanted(self, item: Any) -> Wanted:
        if isinstance(item, str | tuple | list):
            return as_wanted(item)
        return self._keys.wanted(row_number(item, len(self)))

    def _name(self, item: Any) -> str:
        try:
            wanted = self._wanted(item)
        except (TypeError, ValueError, IndexError):
            return repr(item)
        if isinstance(self._store, ObjectStore):
            return f"{self._shown.rstrip('/')}/{wanted}"
        return f"{wanted} of {self._shown}"

    async def _request(self, item: Any) -> memoryview:
        wanted = self._wanted(item)
        etag = wanted.etag
        if wanted.start is None or wanted.stop is None:
            payload, info = await self._store.get(wanted.key, etag=etag)
            etag = etag or info.etag
        else:
            payload = await self._store.get_range(
                wanted.key, wanted.start, wanted.stop, etag=wanted.etag
            )
        if wanted.nbytes is not None:
            require_length(str(wanted), payload.nbytes, wanted.nbytes)
        checksum = checksum_of(self._checksums, wanted.item)
        if checksum is not None:
            await require_checksum(str(wanted), payload, checksum)
        if self._tier is not None:
            self._tier.keep(self._tier_key(wanted, etag), payload)
        return payload

    async def _kept(self, item: Any) -> memoryview | None:
        assert self._tier is not None
        try:
            wanted = self._wanted(item)
        except (TypeError, ValueError, IndexError):
            return None  # the request says what is wrong with it
        return await self._tier.get(self._tier_key(wanted, wanted.etag))

    def _tier_key(self, wanted: Wanted, etag: str | None) -> TierKey:
        checksum = checksum_of(self._checksums, wanted.item)
        place = (wanted.key, wanted.start, wanted.stop)
        return TierKey(self._store.identity, *place, etag, wanted.nbytes, checksum)


def _store_of(url: Any, policy: FetchPolicy, options: Mapping[str, Any] | None) -> Store:
    if not isinstance(url, str | os.PathLike):
        return open_store(url, **(options or {}))
    limit = policy.attempt_timeout
    # The policy's own limit is to come first: it is counted, and tried again.
    return ObjectStore(
        url, options=options, timeout=None if limit is None else 2 * limit + _SPARE_SECONDS
    )
