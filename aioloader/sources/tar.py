"""TarSource: random access to the samples of tar shards, in any store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

from anyio import to_thread

from aioloader.sources.coalescing import COALESCE_GAP, COALESCE_MOST
from aioloader.sources.errors import IndexDamaged
from aioloader.sources.naming import are_named_by, name_objects
from aioloader.sources.opening import Opened
from aioloader.sources.ranges import Once, Ranges, element_fetch, row_number
from aioloader.sources.tar_index import TarIndex, grouping
from aioloader.sources.tar_reading import scan_shards

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aioloader._fetching.policy import FetchPolicy
    from aioloader.sources.seam import ObjectInfo

__all__ = ["TarSource"]

_INDEX_REQUESTS = 64


@final
class TarSource(Opened[TarIndex]):
    """The samples of WebDataset-style tar shards: a sequence with random access.

    A sample is the files that follow each other and have one key, as a dict of read-only
    views: ``{"__key__": "train/000", "jpg": memoryview, "cls": memoryview}``. Samples that are
    asked for in one turn of the loop are planned together: neighbours come by one request, of
    which their views are slices; so a sample that is kept may keep ``coalesce_most`` bytes::

        async with TarSource("s3://bucket/train/", "shard-{000..099}.tar") as source:
            group = DataGroup(64, range(len(source)), loader_arrays=...)
            async with Loader(decode, group, fetch=source.fetch) as loader: ...

    The index is made when the source is opened: from headers, by ranges, each header checked.
    It is bound to the shards' sizes and ETags: a shard that has changed since is an
    `ObjectChanged`. Compressed shards cannot be read at random, and are refused, as are links
    and sparse files; directories and devices are left out. What follows the two blocks of
    zeros that end a tar file is not looked at.

    Picklable, once it is open without another look at the shards. Any number of event loops
    may use it.

    Args:
        store: A URL, or a store (whatever `open_store` takes).
        shards: Keys of shards: one, or several. ``{000..099}`` and ``{a,b}`` stand for many,
            and those with ``*``, ``?`` or ``[`` are listed. What a listing told of objects
            may be given in place of their keys, and then costs no request.
        policy: The policy of each request.
        index: A `TarIndex`, or the path of a file: read where it is there, else written.
        index_requests: How many ranges are read of a shard at most to make its index, besides
            one for each MiB of it. What lies between headers is not read, unless they are
            so near each other that this is as quick, or so many that it took more requests.
        coalesce_gap: The most bytes between two files that one request is made for.
        coalesce_most: The most bytes of such a request; a longer file has one of its own.
        group_by: ``"basename"`` (the key is a name up to the first dot of its last part), or
            a function from a file's name to its key and field, or to None where it is of no
            sample.
        options: Passed on to obstore with a URL: credentials, an endpoint and the like. They
            are shown nowhere, and pickled with the source.

    Raises:
        ValueError, TypeError: An argument is wrong; the message names it.
    """

    _rows = "samples"
    _bound = ("fetch",)

    def __init__(
        self,
        store: Any,
        shards: str | Sequence[str | ObjectInfo],
        *,
        policy: FetchPolicy | None = None,
        index: TarIndex | str | os.PathLike[str] | None = None,
        index_requests: int = _INDEX_REQUESTS,
        coalesce_gap: int = COALESCE_GAP,
        coalesce_most: int = COALESCE_MOST,
        group_by: str | Callable[[str], tuple[str, str] | None] = "basename",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(index_requests, bool) or not isinstance(index_requests, int):
            raise TypeError(f"index_requests={index_requests!r} must be a whole number")
        if index_requests < 1:
            raise ValueError(f"index_requests={index_requests!r} must be 1 at least")
        grouping(group_by)
        self._shards = shards if isinstance(shards, str) else tuple(shards)
        self._ranges = Ranges(store, policy, options=options, gap=coalesce_gap, most=coalesce_most)
        self._index_requests = index_requests
        self._group_by = group_by
        self._path: Path | None = None
        self._table: Once[TarIndex] = Once()
        self._unchecked: set[int] = set()  # shards without an ETag, not looked at yet
        if isinstance(index, TarIndex):
            self._use(index, "index")
            self._table = Once(index)
        elif index is not None:
            self._path = Path(index)
        self._prepare()

    def _prepare(self) -> None:
        self.fetch = element_fetch(self._sample, self._ranges.policy, self._named)

    @classmethod
    async def indexed(cls, store: Any, shards: Any, **options: Any) -> Self:
        """Return a source that has been opened."""
        return await cls(store, shards, **options).open()

    async def open(self) -> Self:
        """Read the index, or make it; harmless to repeat. Needed before ``len(source)``.

        Raises:
            FetchError: A shard could not be read.
            ShardError: A shard is no tar file that can be read at random, or damaged.
            IndexDamaged: The index is damaged, or one of other shards.
        """
        return await super().open()

    async def aclose(self) -> None:
        """Let go of connections; they are made anew if it is used again."""
        await super().aclose()

    async def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a sample; raises `FetchError` where it could not be fetched."""
        return dict(await self.fetch(row_number(index, len(self))))

    @property
    def index(self) -> TarIndex:
        """The index of its samples; raises RuntimeError before it is open."""
        return self._opened()

    def key(self, index: int) -> str:
        """Return the key of a sample."""
        return self.index[row_number(index, len(self))].key

    async def _sample(self, number: int) -> dict[str, Any]:
        place = self.index[row_number(number, len(self))]
        if place.shard in self._unchecked:
            await self._ranges.require_unchanged(self.index.shards[place.shard])
            self._unchecked.discard(place.shard)
        parts = await self._ranges.read(self.index.shards[place.shard], place.spans)
        return {"__key__": place.key, **dict(zip(place.fields, parts, strict=True))}

    def _named(self, number: int) -> str:
        index = self.index
        if not 0 <= number < len(index):
            return f"sample {number}"
        place = index[number]
        return f"sample {number} ({place.key!r} of {index.shards[place.shard].key})"

    async def _make(self) -> TarIndex:
        path = self._path
        if path is not None and await to_thread.run_sync(path.exists):
            index = await to_thread.run_sync(TarIndex.load, path)
            self._use(index, f"index={os.fspath(path)!r}")
            return index
        infos = await name_objects(self._ranges, self._shards, "shards")
        scans = await scan_shards(self._ranges, infos, spare_requests=self._index_requests)
        index = await to_thread.run_sync(TarIndex.of, scans, self._group_by)
        if path is not None:
            await to_thread.run_sync(index.save, path)
        return index

    def _use(self, index: TarIndex, name: str) -> None:
        """Take an index that was made before, if it is one of these shards and samples."""
        if not are_named_by(self._shards, index.shards):
            raise IndexDamaged(f"{name} is an index of other shards; delete it to have a new one")
        if index.group_by != grouping(self._group_by)[0]:
            raise IndexDamaged(
                f"{name} has samples of group_by={index.group_by!r}, and "
                f"{grouping(self._group_by)[0]!r} is wanted; delete it to have a new one"
            )
        self._unchecked = {n for n, shard in enumerate(index.shards) if shard.etag is None}
