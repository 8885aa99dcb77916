"""Writing: entries into a directory, a bounded number at once, whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import os
import re
import time
import traceback
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

import aiofiles
import anyio

from aioloader._caches.threads import FileThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from aioloader._caches.directory import Directory
    from aioloader._caches.entry import EntryFormat, EntryKey

__all__ = ["TEMPORARY", "Temporary", "Writer", "is_left_over", "publish_bytes", "sweep"]

T = TypeVar("T")

_CHUNK = 512 << 10  # a kernel that is never preempted keeps the loop from its core for a chunk
_NICE = 10
_STALLED_SECONDS = 30.0
_END_SECONDS = 5.0
TEMPORARY = re.compile(r"\.(\d{1,10})-(\d{1,20})-(\d{1,20})\.tmp")
_SHOWS_PROCESSES = Path("/proc/self/stat").exists()
_numbers = itertools.count()


@final
class Temporary:
    """An unfinished file, whose name says which process it belongs to."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        pid = os.getpid()
        self.name = f".{pid}-{_start_time(pid) or 0}-{next(_numbers)}.tmp"
        self._descriptor: int | None = None
        self._exists = False
        self._is_over = False
        directory.acquire()

    def open(self) -> int:
        """Make the file and return its descriptor."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = self._directory.descriptor
        descriptor = self._descriptor = os.open(self.name, flags, 0o666, dir_fd=folder)
        self._exists = True
        return descriptor

    def lock(self) -> None:
        """Have it seen that this process lives, also by those who do not see processes."""
        assert self._descriptor is not None
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def link(self, name: str) -> bool:
        """Give the file a name beside it, unless there is one; tells whether there was none."""
        folder = self._directory.descriptor
        try:
            os.link(self.name, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: then the last one stays, and is as whole
            self.replace(self._directory, name)
        return True

    def replace(self, folder: Directory, name: str) -> None:
        """Give the file its place, whatever is there."""
        source, target = self._directory.descriptor, folder.descriptor
        os.replace(self.name, name, src_dir_fd=source, dst_dir_fd=target)
        self._exists = False

    def end(self) -> None:
        """Close it, and remove it if it has not found its place; harmless to repeat."""
        if self._is_over:
            return
        self._is_over = True
        with contextlib.suppress(OSError):
            if self._exists:
                self._directory.remove(self.name)
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # what is late, as on a full share, is lost
                os.close(self._descriptor)
        self._directory.release()


def sweep(directory: Directory) -> int:
    """Remove unfinished files of processes that have ended; returns how many."""
    swept = 0
    for name in list(directory.names()):
        if is_left_over(directory, name):
            with contextlib.suppress(OSError):
                directory.remove(name)
                swept += 1
    return swept


def is_left_over(directory: Directory, name: str) -> bool:
    """Tell whether a file is unfinished and belongs to no living process.

    A process that lives in another container is not to be seen, but its lock is.
    """
    found = TEMPORARY.fullmatch(name)
    if found is None or _lives(int(found[1]), int(found[2])):
        return False
    try:
        descriptor = directory.open_file(name)
    except Exception:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return True


def publish_bytes(
    directory: Directory, name: str, raw: bytes, step: Callable[[], None] | None
) -> None:
    """Make a small file, whole, unless there is one of that name: the first one stays."""
    step = step or _nothing
    temporary = Temporary(directory)
    try:
        step()
        with open(temporary.open(), "wb", buffering=0, closefd=False) as file:
            step()
            temporary.lock()
            step()
            if file.write(raw) != len(raw):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        step()
        temporary.link(name)
        step()
    finally:
        temporary.end()


def _start_time(pid: int) -> int | None:
    """Return when a process started, or None where it has ended or that is not to be known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] == b"Z" else int(fields[19])


def _lives(pid: int, start_time: int) -> bool:
    if _SHOWS_PROCESSES:
        return _start_time(pid) == start_time
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@final
class _Job:
    """What is to be written; lets go of it when it has been, or never will be."""

    def __init__(
        self,
        key: EntryKey,
        arrays: Mapping[str, Any],
        extras: Mapping[str, Sequence[object]] | bytes,
        hold: object,
    ) -> None:
        self.key = key
        self.arrays = arrays
        self.extras: Mapping[str, Sequence[object]] | bytes = extras
        self._hold = hold
        self._pieces: deque[memoryview] = deque()
        self._position = 0

    def encoded(self, pieces: Iterable[Any]) -> None:
        self._pieces.extend(memoryview(piece) for piece in pieces if len(piece))

    def chunk(self) -> memoryview | bytes:
        """Return what is to be written next, up to where a chunk of the file ends, or nothing.

        So the system can keep each chunk in one piece of memory, which takes less to map.
        """
        parts: list[memoryview] = []
        room = _CHUNK - self._position % _CHUNK
        for piece in self._pieces:
            parts.append(piece[:room])
            room -= len(parts[-1])
            if room == 0:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def written(self, count: int) -> None:
        self._position += count
        while count:
            piece = self._pieces.popleft()
            if count < len(piece):
                self._pieces.appendleft(piece[count:])
            count -= min(count, len(piece))

    def drop(self) -> None:
        self.arrays, self.extras, self._hold = {}, {}, None
        self._pieces.clear()


@final
class Writer:
    """Write entries on one event loop, in threads, ``cachers`` at a time.

    What goes wrong costs the entry and nothing else; ``done`` is told what became of each.
    ``step``, if any, is called between any two system calls.
    """

    def __init__(
        self,
        directory: Directory,
        form: EntryFormat,
        done: Callable[[EntryKey, Exception | None], None],
        *,
        cachers: int,
        fsync: bool,
        step: Callable[[], None] | None,
    ) -> None:
        self._directory = directory
        self._form = form
        self._done = done
        self._step = step
        self._fsync = fsync
        self._most = 2 * cachers
        # One thread each: what is asked of a file is done in that order, also when nobody
        # waits for it any more.
        self._threads = [
            FileThreads(1, "aioloader-cache-write", nice=_NICE) for _ in range(cachers)
        ]
        self._free = list(self._threads)
        self._limiter = anyio.CapacityLimiter(cachers)
        self._tasks: dict[EntryKey, asyncio.Task[None]] = {}
        self._steps = 0

    def __repr__(self) -> str:
        return f"<Writer: {self.pending} entries to write>"

    @property
    def pending(self) -> int:
        """How many entries are being written, or wait for it."""
        return len(self._tasks)

    def write(
        self,
        key: EntryKey,
        arrays: Mapping[str, Any],
        extras: Mapping[str, Sequence[object]] | bytes,
        hold: object,
    ) -> asyncio.Future[None]:
        """Write an entry some time; what is to be written already is not written twice."""
        if key in self._tasks:
            return self._tasks[key]
        job = _Job(key, arrays, extras, hold)
        task = asyncio.get_running_loop().create_task(
            self._run(job), name=f"aioloader-cache-write {key}"
        )
        self._tasks[key] = task

        def end(_: object) -> None:
            del self._tasks[key]
            job.drop()

        task.add_done_callback(end)
        return task

    async def settled(self, key: EntryKey) -> None:
        """Wait until an entry is not being written."""
        if (task := self._tasks.get(key)) is not None:
            await asyncio.wait([task])

    async def room(self) -> None:
        """Wait while more entries are to be written than twice as many as are at once."""
        while self.pending > self._most:
            await asyncio.wait(self._all(), return_when=asyncio.FIRST_COMPLETED)

    async def flush(self) -> None:
        """Wait until everything is written that is to be written now."""
        if tasks := self._all():
            await asyncio.wait(tasks)

    async def aclose(self) -> int:
        """Wait until everything is written, and return how many entries never will be.

        Nothing more is waited for when a disk has not moved for half a minute. If this is
        cancelled, what has not been written is given up, and its files are removed.
        """
        try:
            steps = -1
            while self._tasks and self._steps != steps:
                steps = self._steps
                await asyncio.wait(self._all(), timeout=_STALLED_SECONDS)
        finally:
            given_up = self._all()
            for task in given_up:
                task.cancel()
            if given_up:
                await _outlast(given_up)
            for thread in self._threads:
                thread.shutdown()
        return len(given_up)

    def _all(self) -> list[asyncio.Task[None]]:
        return list(self._tasks.values())

    async def _run(self, job: _Job) -> None:
        failure: Exception | None = None
        try:
            async with self._limiter:
                thread = self._free.pop()
                try:
                    await self._write(job, thread)
                finally:
                    self._free.append(thread)
        except Exception as error:
            failure = error.with_traceback(None)
        except BaseException as error:
            # Whoever notes the end of the task may keep the cancellation in a circle of
            # references, and with it what the frames refer to: arrays, and through them a slot.
            traceback.clear_frames(error.__traceback__)
            raise
        self._done(job.key, failure)

    async def _write(self, job: _Job, thread: FileThreads) -> None:
        loop = asyncio.get_running_loop()
        temporary = Temporary(self._directory)

        async def call(function: Callable[..., T], *args: Any) -> T:
            if self._step is not None:
                await loop.run_in_executor(thread, self._step)
            self._steps += 1
            return await loop.run_in_executor(thread, function, *args)

        try:
            await call(self._encode, job)
            descriptor = await call(temporary.open)
            await call(temporary.lock)
            # Not as a context manager: to leave one would take a thread of the loop's own.
            file = await aiofiles.open(
                descriptor, "wb", buffering=0, closefd=False, executor=thread
            )
            while chunk := await call(job.chunk):
                job.written(await file.write(chunk))
            if self._fsync:
                await call(os.fsync, descriptor)
            folder, (*folders, name) = self._directory, job.key.path
            for each in folders:
                folder = await call(folder.make, each)
            await call(temporary.replace, folder, name)
            await call(_nothing)
        finally:
            await _outlast([loop.run_in_executor(thread, temporary.end)])

    def _encode(self, job: _Job) -> None:
        job.encoded(self._form.encode(job.key, job.arrays, job.extras))


def _nothing() -> None:
    return None


async def _outlast(futures: Sequence[asyncio.Future[Any]]) -> None:
    """Wait for what goes on whoever is cancelled, though not for ever; then say if one was."""
    cancelled: asyncio.CancelledError | None = None
    deadline = time.monotonic() + _END_SECONDS
    waiting = set(futures)
    with anyio.CancelScope(shield=True):
        while waiting and (left := deadline - time.monotonic()) > 0:
            try:
                _, waiting = await asyncio.wait(waiting, timeout=left)
            except asyncio.CancelledError as error:
                cancelled = error
                waiting = {future for future in waiting if not future.done()}
    if cancelled is not None:
        raise cancelled
