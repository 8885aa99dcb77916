"""Parquet files in a store: footers, row groups by ranges, and how they are decoded."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from anyio import to_thread

from aioloader.sources.parquet_values import getter, pyarrow
from aioloader.sources.shard_errors import ShardError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioloader.sources.coalescing import Span
    from aioloader.sources.ranges import Ranges
    from aioloader.sources.seam import ObjectInfo

__all__ = ["ParquetFile", "RowGroup", "open_file", "read_row_group"]

_TAIL = 64 * 1024
_END = 8  # the length of the footer, and the magic
_MOST_GAPS = 16


@final
@dataclass(frozen=True, slots=True)
class ParquetFile:
    """A file and its footer."""

    info: ObjectInfo
    metadata: Any

    def names(self) -> list[str]:
        """Return its columns, those that are in none of the others."""
        return list(self.metadata.schema.to_arrow_schema().names)

    def spans(self, group: int, columns: Sequence[str]) -> list[Span]:
        """Return where the chunks of some columns are."""
        told = self.metadata.row_group(group)
        wanted = tuple(f"{column}." for column in columns)
        chunks = (told.column(number) for number in range(told.num_columns))
        spans = []
        for chunk in chunks:
            if f"{chunk.path_in_schema}.".startswith(wanted):
                start = chunk.data_page_offset
                if chunk.has_dictionary_page:
                    start = min(start, chunk.dictionary_page_offset)
                spans.append((start, start + chunk.total_compressed_size))
        return spans


@final
class RowGroup:
    """The rows of one row group, decoded."""

    def __init__(self, columns: dict[str, Callable[[int], Any]], nbytes: int) -> None:
        self._columns = columns
        self.nbytes = nbytes

    def row(self, number: int) -> dict[str, Any]:
        """Return a row."""
        return {name: get(number) for name, get in self._columns.items()}


async def open_file(ranges: Ranges, info: ObjectInfo) -> ParquetFile:
    """Read a file's footer: by one range, or two where it is long."""
    if info.size < _END + 4:
        raise ShardError(info.key, 0, "it is too short for a Parquet file")
    start = max(info.size - _TAIL, 0)
    tail = await ranges.read_alone(info, start, info.size)
    magic, length = bytes(tail[-4:]), int.from_bytes(tail[-8:-4], "little")
    if magic == b"PARE":
        raise ShardError(info.key, info.size - 4, "its footer is encrypted, and cannot be read")
    if magic != b"PAR1":
        raise ShardError(info.key, info.size - 4, "it is no Parquet file, or truncated")
    begin = info.size - _END - length
    if begin < 4:
        raise ShardError(info.key, info.size - _END, f"its footer cannot have {length:,} bytes")
    if begin < start:
        before = await ranges.read_alone(info, begin, start)
        tail, start = memoryview(b"".join((before, tail))), begin
    footer = tail[begin - start :]
    return ParquetFile(info, await to_thread.run_sync(_parse, info, begin, footer))


async def read_row_group(
    ranges: Ranges, file: ParquetFile, group: int, columns: Sequence[str]
) -> RowGroup:
    """Read the chunks of some columns, and decode them in a thread."""
    spans = file.spans(group, columns)
    for _ in range(_MOST_GAPS):
        parts = await ranges.read(file.info, spans)
        pieces = _Pieces(file.info.size, spans, parts)
        try:
            return await to_thread.run_sync(
                _decode, file, group, columns, pieces, abandon_on_cancel=True
            )
        except _Beyond as gap:  # some old programs count a chunk's bytes wrongly
            spans = [*spans, gap.span]
    raise ShardError(file.info.key, spans[0][0], f"row group {group} tells wrong offsets")


def _parse(info: ObjectInfo, begin: int, footer: memoryview) -> Any:
    pa = pyarrow()
    try:
        return pa.parquet.read_metadata(pa.BufferReader(pa.py_buffer(footer)))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ShardError(info.key, begin, f"its footer cannot be read: {error}") from None


def _decode(file: ParquetFile, group: int, columns: Sequence[str], pieces: _Pieces) -> RowGroup:
    pa = pyarrow()
    try:
        reader = pa.parquet.ParquetFile(
            pa.PythonFile(pieces, mode="r"),
            metadata=file.metadata,
            pre_buffer=False,
            page_checksum_verification=True,
        )
        # Threads of its own would be as many as cores for each of those that call this.
        table = reader.read_row_group(group, columns=list(columns), use_threads=False)
        wanted = file.metadata.row_group(group).num_rows
        if table.num_rows != wanted:
            raise ValueError(f"it has {table.num_rows:,} rows of {wanted:,}")
        arrays = {name: table.column(name).combine_chunks() for name in columns}
        return RowGroup({name: getter(array) for name, array in arrays.items()}, table.nbytes)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        place = file.spans(group, columns)[0][0]
        reason = f"row group {group} cannot be decoded: {error}"
        raise ShardError(file.info.key, place, reason) from None


class _Beyond(Exception):
    """Something is read that has not been fetched."""

    def __init__(self, span: Span) -> None:
        super().__init__(f"bytes {span[0]:,} to {span[1]:,}")
        self.span = span


@final
class _Pieces:
    """A file of which some ranges are there, as pyarrow reads one."""

    def __init__(self, size: int, spans: Sequence[Span], parts: Sequence[memoryview]) -> None:
        self._size = size
        self._parts = sorted(
            ((span, part) for span, part in zip(spans, parts, strict=True)), key=lambda p: p[0]
        )
        self._starts = [span[0] for span, _ in self._parts]
        self._position = 0
        self.closed = False

    def read_buffer(self, nbytes: int) -> Any:
        """Return the bytes from the position on, without a copy."""
        return pyarrow().py_buffer(self.read(nbytes))

    def read(self, nbytes: int = -1) -> memoryview:
        """Return the bytes from the position on."""
        start = self._position
        stop = self._size if nbytes < 0 else min(start + nbytes, self._size)
        self._position = stop
        number = bisect.bisect_right(self._starts, start) - 1
        if number >= 0:
            (first, last), part = self._parts[number]
            if stop <= last:
                return part[start - first : stop - first]
        raise _Beyond((start, stop))

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move the position."""
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def size(self) -> int:
        """Return how long the file is."""
        return self._size

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is not."""
        return False

    def close(self) -> None:
        """There is nothing to close."""
        self.closed = True
