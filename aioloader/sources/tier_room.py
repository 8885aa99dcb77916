"""Room: how many bytes a directory holds, kept within a bound by all processes together."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import struct
import time
from typing import TYPE_CHECKING, NamedTuple, final

import xxhash

from aioloader._caches.directory import Directory, NotPlain
from aioloader._caches.writing import TEMPORARY
from aioloader.sources.tier_entry import NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Room"]

_USAGE = "usage"
_TOTAL = struct.Struct("<Q8s")
_ENTRY = re.compile(NAME)
_FOLDER = re.compile(r"[0-9a-f]{2}")
_LOW_WATER = 0.9  # of the bound: making room looks at every file, and should be rare
_LOCK_SECONDS = 5.0
_LOOK_SECONDS = 0.005


class _Found(NamedTuple):
    used: int
    size: int
    folder: str
    name: str
    number: int


@final
class Room:
    """Counts bytes in a file that processes lock, and removes what was used longest ago.

    Bytes are counted before they are written, and a file has its full length from then on: a
    process that is killed leaves too high a count, which the next look at all files mends.
    """

    def __init__(self, directory: Directory, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self.nbytes = 0

    def take(self, descriptor: int, size: int) -> tuple[bool, int]:
        """Give a new file its length; tells whether there is room, and how many had to go."""
        with self._locked() as usage:
            total, evicted = self._read(usage), 0
            os.ftruncate(descriptor, size)
            total = -1 if total < 0 else total + size
            if not 0 <= total <= self._max_bytes:
                total, evicted = self._make()
            has_room = total <= self._max_bytes
            if not has_room:
                os.ftruncate(descriptor, 0)
                total -= size
            self.nbytes = total
            with contextlib.suppress(OSError):  # on a full disk: it is counted anew, then
                os.pwrite(usage, _packed(total), 0)
            return has_room, evicted

    def recount(self) -> int:
        """Look at all files, and remove some if there are too many bytes; returns how many."""
        with self._locked() as usage:
            self.nbytes, evicted = self._make()
            with contextlib.suppress(OSError):
                os.pwrite(usage, _packed(self.nbytes), 0)
            return evicted

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        descriptor = os.open(_USAGE, flags, 0o666, dir_fd=self._directory.descriptor)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise NotPlain(f"{_USAGE!r} is not a regular file")
            _lock(descriptor)
            yield descriptor
        finally:
            os.close(descriptor)

    def _read(self, usage: int) -> int:
        raw = os.pread(usage, _TOTAL.size, 0)
        if len(raw) != _TOTAL.size:
            return -1
        total: int = _TOTAL.unpack(raw)[0]
        return total if raw == _packed(total) else -1

    def _make(self) -> tuple[int, int]:
        """Remove what was used longest ago, if need be; returns what is left, and how many went."""
        found = list(self._found())
        total, evicted = sum(each.size for each in found), 0
        if total <= self._max_bytes:
            return total, 0
        found.sort()
        for each in found:
            if total <= self._max_bytes * _LOW_WATER:
                break
            if each.folder and self._remove(each):
                total -= each.size
                evicted += 1
        return total, evicted

    def _remove(self, each: _Found) -> bool:
        try:
            self._directory.enter(each.folder).remove(each.name)
        except (OSError, NotPlain):
            return False
        return True

    def _found(self) -> Iterator[_Found]:
        """Yield files that are being written, whose folder is empty, and entries.

        In this order, as they become entries meanwhile: each is seen, and counted once.
        """
        seen = set()
        for each in _files(self._directory, "", TEMPORARY):
            seen.add(each.number)
            yield each
        for name in list(self._directory.names()):
            if _FOLDER.fullmatch(name):
                with contextlib.suppress(OSError, NotPlain):
                    folder = self._directory.enter(name)
                    yield from (f for f in _files(folder, name, _ENTRY) if f.number not in seen)


def _files(directory: Directory, folder: str, names: re.Pattern[str]) -> Iterator[_Found]:
    for name in list(directory.names()):
        if not names.fullmatch(name):
            continue
        with contextlib.suppress(OSError):
            what = os.stat(name, dir_fd=directory.descriptor, follow_symlinks=False)
            if stat.S_ISREG(what.st_mode):
                yield _Found(what.st_mtime_ns, what.st_size, folder, name, what.st_ino)


def _lock(descriptor: int) -> None:
    """Lock a file, unless whoever has it has stopped for good; not every file system has locks."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError("another process has stopped with the lock") from None
            time.sleep(_LOOK_SECONDS)
        except OSError:
            return
        else:
            return


def _packed(total: int) -> bytes:
    number = struct.pack("<Q", total)
    return number + xxhash.xxh3_64_digest(number)
