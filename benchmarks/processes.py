"""The processes below another one, as Linux tells them."""

import os
from collections.abc import Iterator
from pathlib import Path

_TRIES = 100


def below(pid: int) -> list[int]:
    """Return the processes below one, also those that have ended and are not waited for.

    All are looked for again when a process or a thread ends meanwhile: its children are then
    somebody else's, and may have been looked for there already.
    """
    for more in reversed(range(_TRIES)):
        try:
            return list(_walk(pid))
        except (FileNotFoundError, ProcessLookupError):
            if not more and os.path.exists(f"/proc/{pid}"):
                raise
    return []


def _walk(pid: int) -> Iterator[int]:
    for thread in os.listdir(f"/proc/{pid}/task"):
        for child in map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split()):
            yield child
            yield from _walk(child)
