"""ArrayRecord files on a local disk: their readers, and many records by one call."""

from __future__ import annotations

import importlib
import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, final

from aioloader.sources.errors import ObjectChanged
from aioloader.sources.shard_errors import ShardError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioloader.sources.seam import ObjectInfo

__all__ = ["Readers"]

_MOST_OPEN = 64
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # reads what is asked for, and no more


@final
class Readers:
    """Open files, those used last. Each call blocks; any number of threads may make them.

    Pickled, they are opened anew.
    """

    def __init__(self) -> None:
        self._readers: OrderedDict[str, _Reader] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Readers, ()

    def length(self, path: str | os.PathLike[str], info: ObjectInfo) -> int:
        """Return how many records a file has."""
        return self._reader(os.fspath(path), info).length

    def read(
        self, path: str | os.PathLike[str], info: ObjectInfo, numbers: Sequence[int]
    ) -> list[memoryview]:
        """Return some records of a file.

        Raises:
            FileNotFoundError: There is no such file.
            ObjectChanged: It is of another length than ``info`` says.
            ShardError: It is no ArrayRecord file, or damaged.
        """
        name = os.fspath(path)
        try:
            return self._reader(name, info).read(numbers)
        except ShardError:
            with self._lock:  # after an error a reader reads no more
                self._readers.pop(name, None)
            raise

    def close(self) -> None:
        """Close all files that nobody is reading from; harmless to repeat."""
        with self._lock:
            self._readers.clear()

    def _reader(self, path: str, info: ObjectInfo) -> _Reader:
        with self._lock:
            reader = self._readers.get(path)
            if reader is not None:
                self._readers.move_to_end(path)
                return reader
        reader = _Reader(path, info)
        with self._lock:
            reader = self._readers.setdefault(path, reader)
            while len(self._readers) > _MOST_OPEN:
                self._readers.popitem(last=False)  # closed when who reads from it is done
        return reader


@final
class _Reader:
    """One file; reads one call's records after another's."""

    def __init__(self, path: str, info: ObjectInfo) -> None:
        self._key = key = info.key
        self._lock = threading.Lock()
        size = os.stat(path).st_size
        if size != info.size:
            raise ObjectChanged(f"{key} has {size:,} bytes, and had {info.size:,}")
        module = _array_record()
        try:
            self._reader = module.ArrayRecordReader(path, _OPTIONS)
        except (RuntimeError, ValueError, OSError) as error:
            raise ShardError(key, 0, f"it cannot be opened: {error}") from None
        if not self._reader.ok():
            raise ShardError(key, size, "it is no ArrayRecord file, or truncated or damaged")
        self.length = int(self._reader.num_records())

    def read(self, numbers: Sequence[int]) -> list[memoryview]:
        with self._lock:
            try:
                records = self._reader.read(list(numbers))
                # Where it cannot read on it returns what it has, and that may be empty.
                is_whole = self._reader.ok() and len(records) == len(numbers)
            except (RuntimeError, ValueError, OSError) as error:
                reason = f"records of {numbers[0]:,} to {numbers[-1]:,} cannot be read: {error}"
                raise ShardError(self._key, 0, reason) from None
        if not is_whole:
            reason = f"records of {numbers[0]:,} to {numbers[-1]:,} cannot be read: it is damaged"
            raise ShardError(self._key, 0, reason)
        return [memoryview(record) for record in records]


def _array_record() -> Any:
    try:
        return importlib.import_module("array_record.python.array_record_module")
    except ImportError as error:
        raise ImportError(
            "ArrayRecord files are read with array_record, on Linux and macOS: "
            "pip install 'aioloader[arrayrecord,remote]'"
        ) from error
