"""The shelf: a local tier's directory in use, and the threads that read it and write to it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, final

from aioloader._caches.directory import Directory, NotPlain
from aioloader._caches.threads import FileThreads
from aioloader._caches.writing import Temporary, sweep
from aioloader.sources.tier_entry import HEADER_BYTES, Damaged, Stale, pack_header, read_entry
from aioloader.sources.tier_room import Room

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from aioloader.sources.tier_entry import TierKey

__all__ = ["Shelf", "Tally"]

_logger = logging.getLogger("aioloader.sources")

_READERS = 4
_WRITERS = 2
_NICE = 10
_CHUNK = 512 << 10
_MOST_WAITING = 128 << 20
_PAUSE_SECONDS = 60.0
_TOUCH_SECONDS = 60.0


@final
class Tally:
    """Counts, by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._has_warned = False
        self.counts: dict[str, int] = {}

    def add(self, name: str, number: int = 1) -> None:
        """Count something."""
        with self._lock:
            self.counts[name] = self.counts.get(name, 0) + number

    def warn_once(self, text: str, *args: object) -> None:
        """Warn, unless that has been done."""
        with self._lock:
            has_warned, self._has_warned = self._has_warned, True
        if not has_warned:
            _logger.warning(text, *args)


@final
class Shelf:
    """Reads and writes entries, until it is closed; what goes wrong is counted, never raised."""

    def __init__(self, path: Path, max_bytes: int, tally: Tally, *, verify: bool) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._verify = verify
        self._tally = tally
        self._lock = threading.Lock()
        self._opened: tuple[Directory, Room] | None = None
        self._is_closed = False
        self._off_until = 0.0
        self._waiting_bytes = 0
        self._writers = FileThreads(_WRITERS, "aioloader-tier-write", nice=_NICE)
        self.readers = FileThreads(_READERS, "aioloader-tier-read")
        self.writing: set[Future[None]] = set()

    @property
    def nbytes(self) -> int:
        """What the directory holds, by the last count."""
        return 0 if self._opened is None else self._opened[1].nbytes

    @property
    def is_off(self) -> bool:
        """Whether there is no directory to look at."""
        return self._opened is None and self._rests()

    def read(self, key: TierKey) -> memoryview | None:
        """Return what is kept, or None."""
        try:
            directory, _ = self._open()
            directory.acquire()
        except (OSError, NotPlain) as error:
            self._fail(error)
            return None
        try:
            return self._read(directory, key)
        finally:
            directory.release()

    def write_later(self, key: TierKey, payload: memoryview) -> None:
        """Have a thread write an entry, unless it is too large or too much waits already."""
        size = HEADER_BYTES + payload.nbytes
        has_to_wait = self._waiting_bytes and self._waiting_bytes + size > _MOST_WAITING
        if has_to_wait or size > self._max_bytes or self._rests():
            self._tally.add("skipped")
            return
        with self._lock:
            self._waiting_bytes += size
        future = self._writers.submit(self._write, key, payload)
        self.writing.add(future)
        future.add_done_callback(self.writing.discard)

    @property
    def has_threads(self) -> bool:
        """Whether any of its threads runs."""
        return self.readers.are_alive or self._writers.are_alive

    def close(self) -> None:
        """End the threads once they have done what they were told."""
        with self._lock:
            self._is_closed = True
            opened, self._opened = self._opened, None
        self.readers.shutdown()
        self._writers.shutdown()
        if opened is not None:
            opened[0].close()

    def _open(self) -> tuple[Directory, Room]:
        with self._lock:
            if self._is_closed:
                raise FileNotFoundError("the tier has been closed")
            if self._opened is None:
                directory = Directory.open(self._path, create=True)
                room = Room(directory, self._max_bytes)
                with contextlib.suppress(OSError, NotPlain):  # it may be there to be read only
                    sweep(directory)
                    self._tally.add("evicted", room.recount())
                self._opened = directory, room
            return self._opened

    def _read(self, directory: Directory, key: TierKey) -> memoryview | None:
        folder, name = key.path
        try:
            descriptor = directory.open_file(folder, name)
        except FileNotFoundError:
            return None
        except NotPlain:
            self._tally.add("damaged")
            return None
        except OSError as error:
            self._fail(error)
            return None
        try:
            payload = read_entry(descriptor, key, verify=self._verify)
            _touch(descriptor)
        except (Damaged, Stale) as error:
            self._tally.add("damaged" if isinstance(error, Damaged) else "stale")
            with contextlib.suppress(OSError, NotPlain):
                directory.enter(folder).remove(name)
        except OSError as error:  # too many descriptors, for example: the entry may be right
            self._fail(error)
        else:
            return payload
        finally:
            os.close(descriptor)
        return None

    def _write(self, key: TierKey, payload: memoryview) -> None:
        try:
            stored = self._written(key, payload)
        except (OSError, NotPlain) as error:
            self._tally.add("failed")
            self._fail(error)
        else:
            self._tally.add("stored" if stored else "skipped")
        finally:
            with self._lock:
                self._waiting_bytes -= HEADER_BYTES + payload.nbytes

    def _written(self, key: TierKey, payload: memoryview) -> bool:
        directory, room = self._open()
        temporary = Temporary(directory)
        try:
            descriptor = temporary.open()
            temporary.lock()
            has_room, evicted = room.take(descriptor, HEADER_BYTES + payload.nbytes)
            self._tally.add("evicted", evicted)
            if not has_room:
                return False
            _write_all(descriptor, memoryview(pack_header(key, payload)))
            _write_all(descriptor, payload)
            folder, name = key.path
            temporary.replace(directory.make(folder), name)
        finally:
            temporary.end()
        return True

    def _rests(self) -> bool:
        return time.monotonic() < self._off_until

    def _fail(self, error: Exception) -> None:
        """Do without for a while, and say so once."""
        if self._is_closed:
            return
        self._off_until = time.monotonic() + _PAUSE_SECONDS
        self._tally.warn_once(
            "the local tier in %s cannot be used for now, and objects are fetched: %s: %s",
            self._path,
            type(error).__name__,
            str(error),  # itself it would keep what its frames refer to, for as long as a record
        )


def _touch(descriptor: int) -> None:
    """Note that an entry was used, for whoever makes room."""
    with contextlib.suppress(OSError):
        if time.time() - os.fstat(descriptor).st_mtime > _TOUCH_SECONDS:
            os.utime(descriptor)


def _write_all(descriptor: int, payload: memoryview) -> None:
    while payload:
        payload = payload[os.write(descriptor, payload[:_CHUNK]) :]
