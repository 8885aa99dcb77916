"""One group's directory: files by name below a descriptor, no link ever followed."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import weakref
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Directory", "NotPlain", "open_plain"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A FIFO would block without O_NONBLOCK, and a terminal must not become the program's own.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class NotPlain(Exception):
    """Something else lies where there should be a file or a directory."""


@final
class Directory:
    """A directory by descriptor, which is closed by `close`, or when nobody refers to it.

    Who is using it in a thread that nobody waits for does so to the end, here and nowhere else:
    the descriptor's number may belong to something else a moment after it is closed.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._closing = weakref.finalize(self, os.close, descriptor)
        self._lock = threading.Lock()
        self._users = 0
        self._is_closed = False

    def acquire(self) -> None:
        """Use it, until `release`; raises FileNotFoundError once it has been closed."""
        with self._lock:
            if self._is_closed:
                raise FileNotFoundError(errno.ENOENT, "the directory has been closed")
            self._users += 1

    def release(self) -> None:
        """Use it no longer."""
        with self._lock:
            self._users -= 1
            if self._is_closed and self._users == 0:
                self._closing()

    def close(self) -> None:
        """Close it as soon as nobody uses it; harmless to repeat."""
        with self._lock:
            self._is_closed = True
            if self._users == 0:
                self._closing()

    @classmethod
    def open(cls, path: Path, *, create: bool = False) -> Directory:
        """Open it; links are followed up to its parent, which the user has named, and not in it.

        Raises NotPlain where there is something else, FileNotFoundError where there is nothing.
        """
        if create:
            path.parent.mkdir(parents=True, exist_ok=True)
        parent = cls(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        return parent.make(path.name) if create else parent.enter(path.name)

    def make(self, name: str) -> Directory:
        """Open a directory in it, and make it if need be."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=self.descriptor)
        return self.enter(name)

    def enter(self, name: str) -> Directory:
        """Open a directory in it."""
        try:
            return Directory(os.open(name, _FOLDER, dir_fd=self.descriptor))
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise NotPlain(f"{name!r} is not a directory") from None
            raise

    def open_file(self, *names: str) -> int:
        """Return a descriptor for a file some directories below it."""
        *folders, name = names
        folder = self
        for each in folders:
            folder = folder.enter(each)
        return open_plain(name, folder.descriptor)

    def names(self) -> Iterator[str]:
        """Yield what is in it."""
        with os.scandir(self.descriptor) as found:
            for entry in found:
                yield entry.name

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)


def open_plain(name: str, folder: int) -> int:
    """Open a regular file for reading; raises NotPlain, without opening it, for anything else."""
    what = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(what.st_mode):
        raise NotPlain(f"it is {_kind(what.st_mode)}")
    try:
        descriptor = os.open(name, _FILE, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotPlain("it is a symbolic link") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotPlain("it is not a regular file")
    return descriptor


def _kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a FIFO" if stat.S_ISFIFO(mode) else "not a regular file"
