"""Pages of a mapped file, read in by the system without the interpreter's lock."""

from __future__ import annotations

import ctypes
import errno
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mmap

__all__ = ["fault_in"]

_POPULATE_READ = 22  # MADV_POPULATE_READ, since Linux 5.14
_UNREADABLE = (errno.EFAULT, errno.EIO, getattr(errno, "EHWPOISON", 133))
_madvise = ctypes.CDLL(None, use_errno=True).madvise if sys.platform == "linux" else None


def fault_in(mapping: mmap.mmap) -> bool:
    """Read all of a private mapping in, and tell whether the file could be read.

    Who first touches a page whose file is gone gets a SIGBUS, and whoever waits for a disk
    under the interpreter's lock has the event loop wait with it: this does neither. Where the
    system does not know how, nothing happens.
    """
    if _madvise is None or len(mapping) == 0:
        return True
    start = ctypes.c_char.from_buffer(mapping)
    failed = _madvise(
        ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapping)), _POPULATE_READ
    )
    return not failed or ctypes.get_errno() not in _UNREADABLE
