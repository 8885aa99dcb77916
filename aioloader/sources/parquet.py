"""ParquetSource: random access to the rows of Parquet files, in any store."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np
from anyio import to_thread

from aioloader.sources.flights import Flights
from aioloader.sources.naming import name_objects, split_place
from aioloader.sources.opening import Opened
from aioloader.sources.parquet_files import RowGroup, open_file, read_row_group
from aioloader.sources.parquet_values import pyarrow
from aioloader.sources.ranges import (
    Once,
    Ranges,
    element_fetch,
    in_order,
    row_number,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aioloader._fetching.policy import FetchPolicy
    from aioloader.sources.parquet_files import ParquetFile
    from aioloader.sources.seam import ObjectInfo

__all__ = ["ParquetSource"]

_PATTERN = "*.parquet"
_CACHE_BYTES = 256 * 1024 * 1024
_GAP = 256 * 1024
_MOST = 16 * 1024 * 1024
_GROWTH = 2  # arrays and what they are made of, compared with the uncompressed chunks
_MOST_AT_ONCE = 16


@final
class ParquetSource(Opened["_Table"]):
    """The rows of Parquet files: a sequence with random access, each row a dict of columns::

        async with ParquetSource("s3://bucket/train/", columns=["image", "label"]) as source:
            rows = MapDataset.source(source).map(decode)

    What is fetched and decoded, in threads, are the columns that are wanted of a whole row
    group, once however many rows of it are asked for. The row groups used last are kept, up to
    ``cache_bytes``. So rows should be asked for with their neighbours: shuffle within windows,
    or write small row groups.

    A row's values keep nothing of the row group alive. They are, by the type of the column:

    - numbers, truth values: NumPy scalars of that dtype;
    - dates, timestamps (of UTC, whatever the zone) and durations: ``numpy.datetime64`` and
      ``numpy.timedelta64`` in the unit of the column;
    - texts: ``str``; binaries: ``bytes``;
    - lists of those with a dtype: arrays, ``(length,)``, or ``(length, *sizes)`` where lists
      of fixed sizes are in them; any others, and such with nulls in them, are lists;
    - tensors of a fixed shape: arrays; structs: dicts;
    - decimals, times, maps: ``decimal.Decimal``, ``datetime.time``, lists of pairs;
    - nulls: None.

    Picklable, once it is open without another look at the files. Any number of event loops
    may use it.

    Args:
        store: A store, or the URL of a folder with files; without ``files`` also the URL of
            one file, or of several by a pattern.
        files: Keys of files in the store, one or several, also by patterns as in `TarSource`;
            all below the URL whose names end with ``.parquet``, unless given.
        columns: Names of the columns; all, unless given.
        policy: The policy of each request.
        cache_bytes: The most bytes of decoded row groups that are kept; one always is.
        coalesce_gap: The most bytes between two columns that one request is made for.
        coalesce_most: The most bytes of such a request.
        options: Passed on to obstore with a URL: credentials, an endpoint and the like.

    Raises:
        ValueError, TypeError: An argument is wrong; the message names it.
    """

    _rows = "rows"
    _bound = ("fetch", "_kept", "_flights")

    def __init__(
        self,
        store: Any,
        files: str | Sequence[str | ObjectInfo] | None = None,
        *,
        columns: Sequence[str] | None = None,
        policy: FetchPolicy | None = None,
        cache_bytes: int = _CACHE_BYTES,
        coalesce_gap: int = _GAP,
        coalesce_most: int = _MOST,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(cache_bytes, bool) or not isinstance(cache_bytes, int):
            raise TypeError(f"cache_bytes={cache_bytes!r} must be a whole number")
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes={cache_bytes!r} must be 0 at least")
        if isinstance(columns, str):
            raise TypeError(f"columns={columns!r} must be several names, not one text")
        if (columns is not None and len(set(columns)) < len(columns)) or columns == []:
            raise ValueError(f"columns={columns!r} must be names, each once")
        if files is None:
            store, files = split_place(store, _PATTERN)
        self._names = files if isinstance(files, str) else tuple(files)
        self._ranges = Ranges(store, policy, options=options, gap=coalesce_gap, most=coalesce_most)
        self._columns = None if columns is None else tuple(columns)
        self._cache_bytes = cache_bytes
        self._table: Once[_Table] = Once()
        self._prepare()

    def _prepare(self) -> None:
        self._kept = _Kept(self._cache_bytes)
        self._flights: Flights[int, RowGroup] | None = None
        self.fetch = element_fetch(self._row, self._ranges.policy, "row {}".format)

    async def open(self) -> Self:
        """Read the files' footers; harmless to repeat. Needed before ``len(source)``.

        Raises:
            FetchError: A file could not be read.
            ShardError: A file is no Parquet file, or damaged.
            ValueError: Files have different columns.
        """
        return await super().open()

    async def aclose(self) -> None:
        """Let go of connections and of what is kept; it may be used again."""
        self._kept.clear()
        await super().aclose()

    async def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row; raises `FetchError` where it could not be fetched."""
        return dict(await self.fetch(row_number(index, len(self))))

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns of each row."""
        return self._opened().columns

    @property
    def row_groups(self) -> tuple[range, ...]:
        """The indices of the rows of each row group: those that are cheap together."""
        stops = [0, *self._opened().stops.tolist()]
        return tuple(range(start, stop) for start, stop in itertools.pairwise(stops))

    async def _row(self, index: int) -> dict[str, Any]:
        table = self._opened()
        number, row = table.place(row_number(index, len(table)))
        group = self._kept.get(number)
        if group is None:
            if self._flights is None:
                at_once = table.at_once(self._cache_bytes, self._ranges.policy.concurrency)
                self._flights = Flights(self._load, at_once=at_once)
            group = await self._flights.get(number)
        return group.row(row)

    async def _load(self, number: int) -> RowGroup:
        table = self._opened()
        file, group = table.groups[number]
        loaded = await read_row_group(self._ranges, table.files[file], group, table.columns)
        self._kept.put(number, loaded)
        return loaded

    async def _make(self) -> _Table:
        await to_thread.run_sync(pyarrow)  # to import it takes a while
        infos = await name_objects(self._ranges, self._names, "files")

        async def opened(info: ObjectInfo) -> ParquetFile:
            return await open_file(self._ranges, info)

        files = await in_order(opened, infos, at_once=self._ranges.policy.concurrency)
        return await to_thread.run_sync(_Table, files, self._columns)


@final
class _Table:
    """All rows of some files: which row group each is in."""

    def __init__(self, files: Sequence[ParquetFile], columns: Sequence[str] | None) -> None:
        self.files = tuple(files)
        first = self.files[0].metadata.schema.to_arrow_schema()
        missing = [name for name in columns or () if name not in first.names]
        if missing:
            raise ValueError(f"columns={missing!r} are not among {first.names!r}")
        self.columns = tuple(columns if columns is not None else first.names)
        for file in self.files[1:]:
            schema = file.metadata.schema.to_arrow_schema()
            for name in self.columns:
                type_ = schema.field(name).type if name in schema.names else "none"
                if type_ != first.field(name).type:
                    raise ValueError(
                        f"column {name!r} is {type_} in {file.info.key}, and "
                        f"{first.field(name).type} in {self.files[0].info.key}"
                    )
        self.groups = [
            (number, group)
            for number, file in enumerate(self.files)
            for group in range(file.metadata.num_row_groups)
        ]
        told = [self.files[file].metadata.row_group(group) for file, group in self.groups]
        self.stops = np.cumsum([group.num_rows for group in told], dtype=np.int64)
        self._most_bytes = max((group.total_byte_size for group in told), default=0)

    def __len__(self) -> int:
        return int(self.stops[-1]) if len(self.stops) else 0

    def place(self, row: int) -> tuple[int, int]:
        """Return the row group of a row, and its number there."""
        number = int(np.searchsorted(self.stops, row, "right"))
        return number, row - (int(self.stops[number - 1]) if number else 0)

    def at_once(self, cache_bytes: int, concurrency: int) -> int:
        """Return how many row groups may be loaded at once, as memory goes."""
        fitting = cache_bytes // max(_GROWTH * self._most_bytes, 1)
        return max(min(fitting, concurrency, _MOST_AT_ONCE), 1)


@final
class _Kept:
    """The row groups used last, up to a number of bytes; the very last one always."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._groups: OrderedDict[int, RowGroup] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    def get(self, number: int) -> RowGroup | None:
        with self._lock:
            group = self._groups.get(number)
            if group is not None:
                self._groups.move_to_end(number)
            return group

    def put(self, number: int, group: RowGroup) -> None:
        with self._lock:
            before = self._groups.pop(number, None)
            self._nbytes += group.nbytes - (before.nbytes if before is not None else 0)
            self._groups[number] = group
            while self._nbytes > self._most and len(self._groups) > 1:
                self._nbytes -= self._groups.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        with self._lock:
            self._groups.clear()
            self._nbytes = 0
