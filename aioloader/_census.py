"""The census: what a program holds at one moment, by readable names."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Census"]


@final
@dataclass(frozen=True)
class Census:
    """What a program holds at one moment, on Linux: each a set of readable names."""

    processes: frozenset[str] = field(default_factory=frozenset)
    threads: frozenset[str] = field(default_factory=frozenset)
    descriptors: frozenset[str] = field(default_factory=frozenset)
    shared_memory: frozenset[str] = field(default_factory=frozenset)
    tasks: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def take(cls) -> Census:
        """Count what there is now."""
        return cls(
            frozenset(_processes()),
            frozenset(_threads()),
            frozenset(_descriptors()),
            frozenset(_shared_memory()),
            frozenset(_tasks()),
        )

    def of_loaders(self) -> Census:
        """Return what loaders must not leave, going by its name.

        Memory and descriptors are not counted: a batch may be kept, and with it mappings, each
        of which has a descriptor.
        """
        return Census(
            frozenset(name for name in self.processes if "aioloader._executors" in name),
            frozenset(name for name in self.threads if name.startswith("aioloader-")),
            tasks=frozenset(name for name in self.tasks if name.startswith("aioloader-")),
        )

    def beyond(self, before: Census) -> dict[str, list[str]]:
        """Return what there is now and was not ``before``, by kind."""
        kinds = self.__dataclass_fields__
        new = {kind: sorted(getattr(self, kind) - getattr(before, kind)) for kind in kinds}
        # By number alone: one that has just been started has no command line for a moment.
        known = {name.partition(":")[0] for name in before.processes}
        new["processes"] = [x for x in new["processes"] if x.partition(":")[0] not in known]
        if new["shared_memory"]:
            strange = _of_strangers(new["shared_memory"])
            new["shared_memory"] = [x for x in new["shared_memory"] if x not in strange]
        return {kind: names for kind, names in new.items() if names}


def _processes() -> Iterator[str]:
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for pid in path.read_text().split():
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if "resource_tracker" not in command:
                    yield f"{pid}: {command.strip()}"


def _threads() -> Iterator[str]:
    for thread in threading.enumerate():
        if not thread.name.startswith("AnyIO worker thread"):
            yield f"{thread.name} ({thread.ident})"


def _descriptors() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            yield f"{name}: {os.readlink(f'/proc/self/fd/{name}')}"


def _shared_memory() -> Iterator[str]:
    yield from (f"/dev/shm/{name}" for name in os.listdir("/dev/shm"))
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "aioloader-" in line:
            yield line


def _of_strangers(names: list[str]) -> set[str]:
    """Return those that programs hold which are neither this one nor its descendants."""
    parents = {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            stat = Path(f"/proc/{int(entry)}/stat").read_bytes().rpartition(b")")[2]
            parents[int(entry)] = int(stat.split()[1])
    family, grown = {os.getpid()}, 0
    while len(family) > grown:
        grown = len(family)
        family |= {pid for pid, parent in parents.items() if parent in family}
    # By number: who opens a named semaphore maps it under a name that has been removed.
    numbers: set[int] = set()
    for pid in parents.keys() - family:
        with contextlib.suppress(OSError):
            numbers.update(_shared_files(pid))
    strange = set()
    for name in names:
        with contextlib.suppress(OSError):
            if os.stat(name).st_ino in numbers:
                strange.add(name)
    return strange


def _shared_files(pid: int) -> Iterator[int]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if " /dev/shm/" in line:
            yield int(line.split()[4])
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{fd}").startswith("/dev/shm/"):
                yield os.stat(f"/proc/{pid}/fd/{fd}").st_ino


def _tasks() -> Iterator[str]:
    with contextlib.suppress(RuntimeError):
        for task in asyncio.all_tasks():
            yield task.get_name()
