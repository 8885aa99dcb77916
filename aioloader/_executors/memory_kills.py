"""Memory kills: whether the system has killed processes for want of memory."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MemoryKills"]


@final
class MemoryKills:
    """Compares the kernel's counts of such kills: of the whole system, and of our cgroups.

    A count of the system covers the containers on it; where it cannot be read, that of the
    cgroup that this process is in will do. Elsewhere than on Linux there is none.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._before = self._count()

    def rose(self) -> bool | None:
        """Tell whether there was one since this object was made; None where nobody counts."""
        count = self._count()
        return None if count is None or self._before is None else count > self._before

    def _count(self) -> int | None:
        counts = [
            int(words[1])
            for path in self._files()
            for words in (line.split() for line in _read(path).splitlines())
            if words[:1] == ["oom_kill"]
        ]
        return sum(counts) if counts else None

    def _files(self) -> Iterator[Path]:
        yield self._root / "proc/vmstat"
        base = self._root / "sys/fs/cgroup"
        for line in _read(self._root / "proc/self/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):  # version 1
                yield base / "memory" / path.lstrip("/") / "memory.oom_control"
            elif not controllers:  # version 2
                yield base / path.lstrip("/") / "memory.events"


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""
