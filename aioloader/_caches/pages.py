"""Pages of a mapped file, read in by the system without the interpreter's lock."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import mmap

__all__ = ["fault_in", "touch"]

_POPULATE_READ = 22  # MADV_POPULATE_READ, since Linux 5.14
_UNREADABLE = (errno.EFAULT, errno.EIO, getattr(errno, "EHWPOISON", 133))
_SAMPLED = 2 << 20
_MAPPED_AT_ONCE = 64 << 10  # by one fault of a page of a file, as Linux comes
_madvise = ctypes.CDLL(None, use_errno=True).madvise if sys.platform == "linux" else None
_AT_ONCE: int | None = getattr(os, "RWF_NOWAIT", None)


def fault_in(mapping: mmap.mmap, descriptor: int) -> bool:
    """Read a private mapping in, unless it is in memory, and tell whether it could be read.

    Who first touches a page that the disk does not give gets a SIGBUS, and who waits for a
    disk on the event loop or under the interpreter's lock stops the program meanwhile. This
    does neither. Where the system does not know how, nothing happens.
    """
    if _madvise is None or _is_in_memory(descriptor, len(mapping)):
        return True
    start = ctypes.c_char.from_buffer(mapping)
    failed = _madvise(
        ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapping)), _POPULATE_READ
    )
    return not failed or ctypes.get_errno() not in _UNREADABLE


def touch(mapping: mmap.mmap) -> None:
    """Have the pages of a mapping mapped that `fault_in` has found in memory.

    Each fault is short, but a consumer that reads 32 MiB has 512 of them.
    """
    np.frombuffer(mapping, np.uint8)[::_MAPPED_AT_ONCE].max()


def _is_in_memory(descriptor: int, size: int) -> bool:
    """Tell whether a file seems to be in the page cache: a page of each two megabytes is."""
    if _AT_ONCE is None:
        return False
    byte = bytearray(1)
    try:
        for offset in (*range(0, size, _SAMPLED), size - 1):
            if os.preadv(descriptor, [byte], offset, _AT_ONCE) == 0:
                return False  # it is shorter than it was
    except OSError:  # it would have to be waited for, or the system cannot tell
        return False
    return True
