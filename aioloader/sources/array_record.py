"""ArrayRecordSource: random access to the records of ArrayRecord files."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final
from urllib.parse import unquote, urlsplit

import numpy as np
from anyio import to_thread

from aioloader.sources.array_record_files import Readers
from aioloader.sources.download import Downloads
from aioloader.sources.naming import name_objects, split_place
from aioloader.sources.opening import Opened
from aioloader.sources.ranges import (
    Once,
    Ranges,
    element_fetch,
    in_order,
    row_number,
)
from aioloader.sources.turns import Call, Turns

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from aioloader._fetching.policy import FetchPolicy
    from aioloader.sources.seam import ObjectInfo

__all__ = ["ArrayRecordSource"]

_PATTERN = "*array_record*"
_MOST_RECORDS = 256
_FILES_AT_ONCE = 16


@final
class ArrayRecordSource(Opened["_Table"]):
    """The records of ArrayRecord files: a sequence with random access, each a read-only view::

        async with ArrayRecordSource("/data/train/") as source:
            examples = MapDataset.source(source).map(parse)

    Records are read in threads; those that are asked for in one turn of the loop by one call
    for each file. Files should have been written with ``group_size:1``: of longer groups a
    whole one is decoded for each record.

    The package reads nothing but local files. So files of a remote store are downloaded, all of
    them, to ``directory`` when the source is opened, unless they are there: by ranges, several
    at once, each whole or not at all. Nothing in it is ever removed. It also keeps, for the
    rest of the process, the threads that it starts with its first file.

    Picklable, once it is open without another look at the files. Any number of event loops may
    use it.

    Args:
        store: The path of a folder with files, or of one, or of several by a pattern; the URL
            of such, or a store.
        files: Keys of files below it, one or several, also by patterns as in `TarSource`; all
            with ``array_record`` in their names, unless given.
        directory: Where files of a remote store are kept. Who shares it shares them.
        policy: The policy of each request of a download.
        options: Passed on to obstore with a URL: credentials, an endpoint and the like.

    Raises:
        ValueError: The store is remote, and there is no ``directory``.
    """

    _rows = "records"
    _bound = ("fetch", "_turns")

    def __init__(
        self,
        store: Any,
        files: str | Sequence[str | ObjectInfo] | None = None,
        *,
        directory: str | os.PathLike[str] | None = None,
        policy: FetchPolicy | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if files is None:
            store, files = split_place(store, _PATTERN)
        self._names = files if isinstance(files, str) else tuple(files)
        self._ranges = Ranges(store, policy, options=options)
        self._root = _local(store)
        self._downloads: Downloads | None = None
        if self._root is None:
            if directory is None:
                raise ValueError(
                    "ArrayRecord files are read from a local disk: give a directory= to which "
                    f"those of {self._ranges.store.identity} can be downloaded"
                )
            self._downloads = Downloads(self._ranges, directory)
        self._readers = Readers()
        self._table: Once[_Table] = Once()
        self._prepare()

    def _prepare(self) -> None:
        self._turns = Turns(self._plan)
        self.fetch = element_fetch(self._record, self._ranges.policy, "record {}".format)

    async def open(self) -> Self:
        """Open the files, and download those that are remote; harmless to repeat.

        Needed before ``len(source)``.

        Raises:
            FetchError: A file could not be downloaded.
            ShardError: A file is no ArrayRecord file, or damaged.
        """
        return await super().open()

    async def aclose(self) -> None:
        """Close files and connections; it may be used again."""
        self._readers.close()
        await super().aclose()

    async def __getitem__(self, index: int) -> memoryview:
        """Return a record; raises `FetchError` where it could not be read."""
        record: memoryview = await self.fetch(row_number(index, len(self)))
        return record

    async def _record(self, index: int) -> memoryview:
        table = self._opened()
        file, number = table.place(row_number(index, len(table)))
        record: memoryview
        (record,) = await self._turns.get(file, (number,))
        return record

    def _plan(self, file: int, numbers: Sequence[int]) -> Iterator[Call]:
        parts = sorted(range(len(numbers)), key=lambda part: numbers[part])
        for begin in range(0, len(parts), _MOST_RECORDS):
            mine = parts[begin : begin + _MOST_RECORDS]
            wanted = [numbers[part] for part in mine]
            places = {part: place for place, part in enumerate(mine)}

            def pick(
                records: list[memoryview], part: int, places: dict[int, int] = places
            ) -> memoryview:
                return records[places[part]]

            yield Call(functools.partial(self._read, file, wanted), mine, pick)

    async def _read(self, file: int, numbers: Sequence[int]) -> list[memoryview]:
        info = self._opened().infos[file]
        path = self._path(info)
        if self._downloads is not None and not await to_thread.run_sync(path.exists):
            await self._downloads.get(info)  # it was removed, or this is another machine
        return await to_thread.run_sync(
            self._readers.read, path, info, numbers, abandon_on_cancel=True
        )

    def _path(self, info: ObjectInfo) -> Path:
        if self._downloads is not None:
            return self._downloads.path(info)
        assert self._root is not None
        return self._root / info.key

    async def _make(self) -> _Table:
        infos = await name_objects(self._ranges, self._names, "files")

        async def length(info: ObjectInfo) -> int:
            path = self._path(info)
            if self._downloads is not None:
                await self._downloads.get(info)
            return await to_thread.run_sync(self._readers.length, path, info)

        lengths = await in_order(length, infos, at_once=_FILES_AT_ONCE)
        return _Table(tuple(infos), np.cumsum(lengths, dtype=np.int64))


@final
@dataclass(frozen=True, slots=True)
class _Table:
    """All records of some files: where each file's stop."""

    infos: tuple[ObjectInfo, ...]
    stops: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.stops[-1])

    def place(self, index: int) -> tuple[int, int]:
        """Return the file of a record, and its number there."""
        file = int(np.searchsorted(self.stops, index, "right"))
        return file, index - (int(self.stops[file - 1]) if file else 0)


def _local(place: Any) -> Path | None:
    """Return the folder that a path or URL is of, None where it is remote."""
    if not isinstance(place, str | os.PathLike):
        return None
    text = os.fspath(place)
    if "://" not in text:
        return Path(text).absolute()
    parts = urlsplit(text)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
