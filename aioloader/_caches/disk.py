"""DiskCache: one group's batches on disk, which are right or not there."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import re
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import anyio
import xxhash

from aioloader._caches.directory import Directory, NotPlain
from aioloader._caches.entry import Damaged, EntryFormat, Foreign
from aioloader._caches.identity import LARGEST, Identity
from aioloader._caches.threads import FileThreads
from aioloader._caches.writing import Writer, publish_bytes, sweep
from aioloader._faults import Trigger, armed
from aioloader._order.arguments import whole_number
from aioloader.errors import CacheCorrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from aioloader._caches.entry import Entry, EntryKey
    from aioloader.protocols import Layouts

__all__ = ["IDENTITY", "CacheCounts", "DiskCache", "read_identity"]

IDENTITY = "identity.json"

_logger = logging.getLogger("aioloader.cache")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_LEAVE_SECONDS, _LOOK_SECONDS = 0.2, 0.5e-3
# Verifying keeps a core busy: one of two is left to the event loop, which waits for no slice.
_READERS, _NICE = (2 if (os.cpu_count() or 1) > 2 else 1), 10
_LOGGED = 10
_CLOCK_STEP_NS = 100_000_000

_verified: set[int] = set()
"""Files whose blocks this process has verified, each as a hash of what identifies it."""


@dataclass(slots=True)
class CacheCounts:
    """What became of a cache's entries.

    Each read is one of ``hits``, ``misses`` (there is no such entry, or the system would not
    read it), ``damaged`` and ``mismatched`` (whole, but of other settings, or another entry).
    Each write is one of ``written`` and ``failed``.

    >>> CacheCounts(hits=1) + CacheCounts(hits=2, misses=1)
    CacheCounts(hits=3, misses=1, damaged=0, mismatched=0, written=0, failed=0)
    """

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    mismatched: int = 0
    written: int = 0
    failed: int = 0

    def __add__(self, other: CacheCounts) -> CacheCounts:
        names = [field.name for field in fields(self)]
        return CacheCounts(*(getattr(self, name) + getattr(other, name) for name in names))


@final
class DiskCache:
    """Remember the batches of one group in files, for this process and others, now and later.

    The files are in ``location / name``. An entry is served if it is whole and was made under
    the same settings (``identity``), and otherwise it is not there, which is counted and, once
    for each entry, logged. What goes wrong with writing is counted, and logged once. Used on
    one event loop from `open` to `aclose`, and may then be opened again.

    Args:
        location: A directory; it and those above it may be links, what is below it may not.
        name: The directory of the group in it.
        identity: The settings under which entries are right.
        layouts: How the arrays of a full batch lie in an entry.
        readonly: Whether nothing is written, not even a directory.
        verify: Whether the arrays of an entry are checked against their checksums when this
            process reads it for the first time. Its header and additional data always are.
        allow_pickle: Whether additional data that are not plain values are pickled, and
            pickles, which may run anybody's code, are read.
        cachers: How many entries are written at once.
        fsync: Whether an entry is on the disk itself before it gets its name. Without it a
            machine that loses power may keep a damaged entry, which ``verify`` finds.
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        name: str,
        identity: Identity,
        layouts: Layouts,
        *,
        readonly: bool,
        verify: bool,
        allow_pickle: bool,
        cachers: int = 2,
        fsync: bool = False,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"name={name!r} must be letters, digits, '-' and '_'")
        if not layouts:
            raise ValueError("layouts is empty: a batch needs at least one array")
        self._cachers = whole_number("cachers", cachers, at_least=1)
        self._path = Path(location) / name
        self._identity = identity
        self._readonly = bool(readonly)
        self._verify = bool(verify)
        self._fsync = bool(fsync)
        self._format = EntryFormat(identity.digest, layouts, allow_pickle=bool(allow_pickle))
        self.counts = CacheCounts()
        self._directory: Directory | None = None
        self._readers: FileThreads | None = None
        self._writer: Writer | None = None
        self._told: set[EntryKey | str] = set()
        self._entries_told = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._step: Callable[[], None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._readers is None else f"{self.pending} entries to write"
        return f"<DiskCache: {self._path}, {state}>"

    async def open(self) -> None:
        """Open the directory, and make it if need be and allowed.

        Raises:
            CacheMismatch: It was made under other settings; the message has both sides.
            CacheCorrupt: Something else is there, or its identity makes no sense.
        """
        if self._readers is not None:
            raise RuntimeError(f"{self!r} is open already")
        readers = FileThreads(_READERS, "aioloader-cache-read", nice=_NICE)
        self._loop = asyncio.get_running_loop()
        plan = armed()
        self._step = functools.partial(Trigger(plan).visit, "cache_write") if plan else None
        opening = readers.submit(self._open)
        try:
            directory = await asyncio.wrap_future(opening)
        except BaseException:
            opening.add_done_callback(_close_result)
            readers.shutdown()
            raise
        self._readers, self._directory = readers, directory
        if directory is not None and not self._readonly:
            self._writer = Writer(
                directory,
                self._format,
                self._wrote,
                cachers=self._cachers,
                fsync=self._fsync,
                step=self._step,
            )

    async def read(self, key: EntryKey) -> Entry | None:
        """Return an entry, or None where there is none that is right; off the event loop.

        What is just being written is waited for.
        """
        readers = self._require_open()
        if self._writer is not None:
            await self._writer.settled(key)
        if self._directory is None:
            self.counts.misses += 1
            return None
        look = functools.partial(self._read, self._directory, key)
        try:
            entry = await asyncio.get_running_loop().run_in_executor(readers, look)
        except (Damaged, NotPlain) as problem:
            self.counts.damaged += 1
            self._tell(key, f"is damaged: {problem}")
        except Foreign as problem:
            self.counts.mismatched += 1
            self._tell(key, f"is not used: {problem}")
        except OSError as problem:
            self.counts.misses += 1
            if problem.errno != errno.ENOENT:
                self._tell("read", f"cannot be read: {problem}")
        else:
            self.counts.hits += 1
            return entry
        return None

    def discard(self, buffer: object) -> None:
        """Let go of what nothing reads any more, in a thread: to unmap much takes a while."""
        if self._readers is not None:
            with contextlib.suppress(RuntimeError):  # they have been told to end
                self._readers.submit(_let_go, buffer)

    def write(
        self,
        key: EntryKey,
        arrays: Mapping[str, Any],
        extras: Mapping[str, Sequence[object]] | bytes,
        hold: object,
    ) -> asyncio.Future[None]:
        """Have an entry written, and return at once; the future ends with it, and never raises.

        ``arrays`` are NumPy or JAX arrays, or functions that return them and are called in a
        thread; ``extras`` are columns, or what `encode_extras` made of them. ``hold`` is kept
        until they have been written.
        """
        self._require_open()
        if self._writer is not None:
            return self._writer.write(key, arrays, extras, hold)
        if not self._readonly:
            self.counts.failed += 1
        nothing = asyncio.get_running_loop().create_future()
        nothing.set_result(None)
        return nothing

    @property
    def is_open(self) -> bool:
        """Whether it is between `open` and `aclose`."""
        return self._readers is not None

    @property
    def pending(self) -> int:
        """How many entries are being written, or are to be."""
        return 0 if self._writer is None else self._writer.pending

    async def room(self) -> None:
        """Wait while more entries are to be written than twice ``cachers``."""
        if self._writer is not None:
            await self._writer.room()

    async def flush(self) -> None:
        """Wait until everything has been written that was to be."""
        if self._writer is not None:
            await self._writer.flush()

    async def aclose(self) -> None:
        """Wait for what is to be written, and let go of the directory; harmless to repeat.

        If it is cancelled, what has not been written is given up, and leaves no file.
        """
        writer, self._writer = self._writer, None
        readers, self._readers = self._readers, None
        directory, self._directory = self._directory, None
        try:
            if writer is not None and (given_up := await writer.aclose()):
                self.counts.failed += given_up
                self._tell("close", f"never took {given_up} entries, for which nobody waits now")
        finally:
            if readers is not None:
                readers.shutdown()
            if directory is not None:
                directory.close()
            if readers is not None:
                await _wait_ended(readers)

    def _require_open(self) -> FileThreads:
        if self._readers is None:
            raise RuntimeError(f"{self!r} has not been opened")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(f"{self!r} was opened on another event loop")
        return self._readers

    def _open(self) -> Directory | None:
        """Return the directory, or None where there is none and none can be made."""
        try:
            directory = Directory.open(self._path, create=not self._readonly)
            try:
                self._check(directory)
            except BaseException:
                directory.close()
                raise
        except NotPlain as problem:
            raise CacheCorrupt(
                f"{self._path} is no cache: {problem}; links are not followed below cache_location"
            ) from None
        except OSError as problem:
            if problem.errno != errno.ENOENT or not self._readonly:
                self._tell("open", f"cannot be opened, and nothing is cached: {problem}")
            return None
        return directory

    def _check(self, directory: Directory) -> None:
        found = read_identity(directory, self._path)
        if found is None and not self._readonly:
            publish_bytes(directory, IDENTITY, self._identity.to_json(), self._step)
            found = read_identity(directory, self._path)
        if found is not None:
            self._identity.require_same(found, str(self._path))
        if not self._readonly:
            sweep(directory)

    def _read(self, directory: Directory, key: EntryKey) -> Entry:
        directory.acquire()
        try:
            return self._open_entry(directory, key)
        finally:
            directory.release()

    def _open_entry(self, directory: Directory, key: EntryKey) -> Entry:
        descriptor = directory.open_file(*key.path)
        try:
            stamp, is_settled = _stamp(descriptor)
            verify = self._verify and stamp not in _verified
            entry = self._format.open(descriptor, key, verify=verify)
        finally:
            os.close(descriptor)
        if verify and is_settled:
            _verified.add(stamp)
        return entry

    def _wrote(self, key: EntryKey, failure: Exception | None) -> None:
        if failure is None:
            self.counts.written += 1
            return
        self.counts.failed += 1
        self._tell(
            "write",
            f"could not keep entry {key}: {failure}; the program goes on without it, and "
            "further failures are only counted",
        )

    def _tell(self, about: EntryKey | str, what: str) -> None:
        """Log something once, and of very many entries only the first."""
        if about in self._told:
            return
        self._told.add(about)
        if isinstance(about, str):
            _logger.warning("the cache in %s %s", self._path, what)
            return
        self._entries_told += 1
        more = "" if self._entries_told < _LOGGED else "; more of the kind are only counted"
        if self._entries_told <= _LOGGED:
            _logger.warning("the cache in %s: entry %s %s%s", self._path, about, what, more)


async def _wait_ended(threads: FileThreads) -> None:
    """Have what is just being read arrive and be dropped; a disk that hangs is left alone."""
    with anyio.move_on_after(_LEAVE_SECONDS, shield=True):
        while threads.are_alive:  # noqa: ASYNC110 - the end of a thread sets no event
            await anyio.sleep(_LOOK_SECONDS)


def _let_go(buffer: object) -> None:
    return None


def _close_result(opening: Future[Directory | None]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        directory = opening.result()
        if directory is not None:
            directory.close()


def read_identity(directory: Directory, path: Path) -> Identity | None:
    """Return the identity that lies in a directory, or None where none does.

    Raises CacheCorrupt or CacheMismatch for one that makes no sense here, and OSError.
    """
    where = str(path / IDENTITY)
    try:
        descriptor = directory.open_file(IDENTITY)
    except FileNotFoundError:
        return None
    except NotPlain as problem:
        raise CacheCorrupt(f"{where} is not the identity of a cache: {problem}") from None
    with open(descriptor, "rb") as file:
        raw = file.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise CacheCorrupt(f"{where} is not the identity of a cache: it is too large")
    return Identity.from_json(raw, where)


def _stamp(descriptor: int) -> tuple[int, bool]:
    """Return what tells a file from every other, and whether it will from its next version.

    Clocks of file systems go by milliseconds: a file that has just been written may be written
    again with the same time.
    """
    what = os.fstat(descriptor)
    parts = (what.st_dev, what.st_ino, what.st_size, what.st_mtime_ns, what.st_ctime_ns)
    age = time.time_ns() - max(what.st_mtime_ns, what.st_ctime_ns)
    return xxhash.xxh3_64_intdigest(repr(parts).encode()), age > _CLOCK_STEP_NS
