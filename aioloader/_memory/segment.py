"""Segments: one block of memory, private or shared with workers by descriptor, never by name."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PrivateSegment", "SharedSegment", "anonymous_file", "map_descriptor"]


@final
class PrivateSegment:
    """Memory of this process alone, for executors that run in it."""

    def __init__(self, nbytes: int) -> None:
        require_memory(nbytes)
        self.nbytes = nbytes
        self.buffer: mmap.mmap | None = mmap.mmap(-1, nbytes)

    def close(self) -> None:
        """Drop the block; views of it keep it alive until they are gone."""
        self.buffer = None


@final
class SharedSegment:
    """Memory that other processes map from a descriptor handed to them.

    It has no name, so nothing is left when every process that maps it is gone, however
    they end. The whole block is reserved at once: a machine without the space says so
    here, and not with a SIGBUS in a worker later.
    """

    def __init__(self, nbytes: int) -> None:
        require_memory(nbytes)
        self.nbytes = nbytes
        self.descriptor = anonymous_file("aioloader-arena")
        try:
            os.ftruncate(self.descriptor, nbytes)
            _reserve(self.descriptor, nbytes)
            self.buffer: mmap.mmap | None = mmap.mmap(self.descriptor, nbytes)
        except BaseException:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        """Close the descriptor and drop the block; views of it keep it alive until then."""
        if self.buffer is not None:
            self.buffer = None
            os.close(self.descriptor)


def map_descriptor(descriptor: int, nbytes: int) -> mmap.mmap:
    """Map a segment that another process made, and close the descriptor."""
    try:
        return mmap.mmap(descriptor, nbytes)
    finally:
        os.close(descriptor)


def require_memory(nbytes: int) -> None:
    """Raise :class:`MemoryError`, with the arithmetic, if the machine cannot hold ``nbytes``."""
    available = _available_bytes()
    if available is not None and nbytes > available:
        raise MemoryError(
            f"the loader's slots need {_mib(nbytes)}, and {_mib(available)} are available: "
            "use a smaller depth or batch_size"
        )


def _available_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def anonymous_file(name: str) -> int:
    """Return a descriptor of new memory that has no name in any file system."""
    create: Callable[[str, int], int] | None = getattr(os, "memfd_create", None)
    if create is not None:
        return create(name, os.MFD_CLOEXEC)
    # Elsewhere: a file that is unlinked before anybody can see it.
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _reserve(descriptor: int, nbytes: int) -> None:
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise
        raise MemoryError(
            f"the loader's slots need {_mib(nbytes)} of shared memory, and reserving it failed "
            f"({error.strerror}): use a smaller depth or batch_size"
        ) from error


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f} MiB"
