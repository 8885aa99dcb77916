"""Mappings: memory without a name, and what a worker needs to map it; imported by workers."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["anonymous_file", "explained", "map_descriptor", "mib"]


def map_descriptor(descriptor: int, nbytes: int) -> mmap.mmap:
    """Map a segment that another process made, and close the descriptor."""
    try:
        with explained(nbytes, "mapping it in a worker"):
            return mmap.mmap(descriptor, nbytes)
    finally:
        os.close(descriptor)


def anonymous_file(name: str) -> int:
    """Return a descriptor of new memory that has no name in any file system."""
    create: Callable[[str, int], int] | None = getattr(os, "memfd_create", None)
    if create is not None:
        return create(name, os.MFD_CLOEXEC)
    # Elsewhere: a file that is unlinked before anybody can see it.
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@contextlib.contextmanager
def explained(nbytes: int, doing: str) -> Iterator[None]:
    """Turn the system's refusal of memory into one that says how much was asked for."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise
        raise MemoryError(
            f"the loader's slots need {mib(nbytes)} of shared memory, and {doing} failed "
            f"({error.strerror}): use a smaller depth or batch_size, or raise this process's "
            "limits (`ulimit -v`, `ulimit -f`)"
        ) from error


def mib(nbytes: int) -> str:
    """Write bytes as mebibytes.

    >>> mib(3 << 19)
    '1.5 MiB'
    """
    return f"{nbytes / 2**20:,.1f} MiB"
