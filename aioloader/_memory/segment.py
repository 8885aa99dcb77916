"""Segments: one block of memory, private or shared with workers by descriptor, never by name."""

from __future__ import annotations

import mmap
import os
from typing import final

from aioloader._memory.limits import require_memory
from aioloader._memory.mapping import anonymous_file, explained

__all__ = ["PrivateSegment", "SharedSegment"]


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
    they end. The whole block is reserved before it is used: a machine without the space says
    so then, and not with a SIGBUS in a worker later. What lies before ``reserved_from`` is
    reserved by `reserve`, which takes a millisecond for every few MiB.
    """

    def __init__(self, nbytes: int, *, reserved_from: int = 0) -> None:
        require_memory(nbytes, shared=True)
        self.nbytes = nbytes
        self._unreserved = reserved_from
        self.descriptor = anonymous_file("aioloader-arena")
        try:
            with explained(nbytes, "reserving it"):
                os.ftruncate(self.descriptor, nbytes)
                _reserve(self.descriptor, reserved_from, nbytes - reserved_from)
            with explained(nbytes, "mapping it"):
                self.buffer: mmap.mmap | None = mmap.mmap(self.descriptor, nbytes)
        except BaseException:
            os.close(self.descriptor)
            raise

    def reserve(self) -> None:
        """Reserve what has not been yet; not to be called while others may close this."""
        with explained(self.nbytes, "reserving it"):
            _reserve(self.descriptor, 0, self._unreserved)
        self._unreserved = 0

    def grow(self, nbytes: int) -> None:
        """Add memory behind the block, which then has ``nbytes``, and another ``buffer``.

        What has been mapped before stays mapped, and is the same memory. Not to be called
        while others may close this, nor by two threads at once.
        """
        more = nbytes - self.nbytes
        require_memory(more, shared=True)
        try:
            with explained(more, "reserving it"):
                os.ftruncate(self.descriptor, nbytes)
                _reserve(self.descriptor, self.nbytes, more)
            with explained(nbytes, "mapping it"):
                self.buffer = mmap.mmap(self.descriptor, nbytes)
        except BaseException:
            os.ftruncate(self.descriptor, self.nbytes)
            raise
        self.nbytes = nbytes

    def close(self) -> None:
        """Close the descriptor and drop the block; views of it keep it alive until then."""
        if self.buffer is not None:
            self.buffer = None
            os.close(self.descriptor)


def _reserve(descriptor: int, start: int, nbytes: int) -> None:
    if nbytes and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, start, nbytes)
