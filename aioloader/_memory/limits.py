"""Limits of memory: what the machine, the cgroup and the process's own limits leave for slots."""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from aioloader._memory.mapping import mib

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["cgroup_folders", "read_number", "require_memory"]

_ROOT = Path("/")
_UNLIMITED = 1 << 60  # version 1 of cgroups says so by a large number
_TRIFLE = 4 << 20  # a program that has not even this left ends anyhow: a worker takes more
_SMALLER = "use a smaller depth or batch_size"


@final
@dataclass(frozen=True, slots=True)
class _Room:
    """The bytes that one limit leaves, in whose name, and what else would help."""

    nbytes: int
    where: str
    remedy: str = ""


def require_memory(nbytes: int, *, shared: bool = False, root: Path = _ROOT) -> None:
    """Raise :class:`MemoryError`, with the arithmetic, if some limit forbids ``nbytes``.

    A limit of the machine or of the cgroup would otherwise let the kernel kill this process
    once the memory is written to, and a limit of the process show as a bare error number.
    ``shared`` memory counts as a file, too. ``root`` is where ``/proc`` and ``/sys`` are.
    Less than 4 MiB are not asked for: to read the limits takes half a millisecond.
    """
    if nbytes < _TRIFLE:
        return
    rooms = _too_small(nbytes, shared, root)
    room = min(rooms, key=lambda room: room.nbytes, default=None)
    if room is not None:
        remedy = f"{_SMALLER}, or {room.remedy}" if room.remedy else _SMALLER
        raise MemoryError(
            f"the loader's slots need {mib(nbytes)}, and {mib(room.nbytes)} are available "
            f"{room.where}: {remedy}"
        )


def cgroup_folders(controller: str, root: Path = _ROOT) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and of those above it, the innermost first.

    Those of version 1, where ``controller`` has a hierarchy of its own, and of version 2. In
    a container only those that it can see.
    """
    for mine, mount, top in _hierarchies(controller, root):
        # In a container the mount may begin at its own cgroup, whose path is the host's.
        inner = mine.removeprefix(top) if top != "/" and mine.startswith(top) else mine
        base = root / mount.lstrip("/")
        folder = base / inner.strip("/")
        if ".." in inner or not folder.is_dir():
            folder = base
        yield folder
        while folder != base:
            folder = folder.parent
            yield folder


def read_number(path: Path) -> int | None:
    """Return the number in a file of the kernel's, or None where there is none ("max")."""
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _too_small(nbytes: int, shared: bool, root: Path) -> Iterator[_Room]:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:") and nbytes > int(line.split()[1]) * 1024:
            yield _Room(int(line.split()[1]) * 1024, "on this machine (MemAvailable)")
    for folder in cgroup_folders("memory", root):
        yield from _cgroup_too_small(folder, nbytes)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = "" if limit == resource.RLIM_INFINITY else _read(root / "proc/self/statm")
    if pages and nbytes > limit - (used := int(pages.split()[0]) * resource.getpagesize()):
        where = f"in this process's address space (RLIMIT_AS: {mib(limit)}, {mib(used)} in use)"
        yield _Room(max(limit - used, 0), where, "raise `ulimit -v`")
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if shared and limit != resource.RLIM_INFINITY and nbytes > limit:
        where = f"in one file, which is what workers share (RLIMIT_FSIZE: {mib(limit)})"
        yield _Room(limit, where, "raise `ulimit -f`")


def _cgroup_too_small(folder: Path, nbytes: int) -> Iterator[_Room]:
    for limit_name, usage_name, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        limit = read_number(folder / limit_name)
        if limit is None or limit >= _UNLIMITED:
            continue
        used = read_number(folder / usage_name)
        if used is None or nbytes <= limit - used:
            continue
        cached = _cached(folder, prefix)
        if nbytes > limit - used + cached:
            where = (
                f"in the cgroup {folder} ({limit_name}: {mib(limit)}, {mib(used)} in use, "
                f"{mib(cached)} of that are cached files)"
            )
            yield _Room(max(limit - used + cached, 0), where, f"raise its {limit_name}")


def _cached(folder: Path, prefix: str) -> int:
    # The kernel drops pages of files before it kills anybody, those in use last.
    cached = 0
    for line in _read(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in (f"{prefix}inactive_file", f"{prefix}active_file"):
            cached += int(value)
    return cached


def _hierarchies(controller: str, root: Path) -> Iterator[tuple[str, str, str]]:
    """Yield this process's path, the mount's place and what is mounted there."""
    paths: dict[str, str] = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        paths.update(dict.fromkeys(names.split(","), path))  # the name "" is version 2
    for line in _read(root / "proc/self/mountinfo").splitlines():
        fields, _, kind = line.partition(" - ")
        top, mount = fields.split()[3:5]
        kind, _, options = kind.split(" ", 2)
        if kind == "cgroup2" and "" in paths:
            yield paths[""], mount, top
        elif kind == "cgroup" and controller in options.split(",") and controller in paths:
            yield paths[controller], mount, top


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_bytes().decode()  # half of what `read_text` takes
    return ""
