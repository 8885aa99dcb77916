"""A survey of a cache from outside: what lies in it, whether it is whole, and what may go."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, final

import numpy as np
import xxhash

from aioloader._caches.directory import Directory, NotPlain
from aioloader._caches.disk import IDENTITY, read_identity
from aioloader._caches.encoding import PickleRefused, decode_extras
from aioloader._caches.entry import BLOCK, Damaged, Foreign, Header, require_extras
from aioloader._caches.writing import TEMPORARY, is_left_over
from aioloader.errors import AioLoaderError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aioloader._caches.identity import Identity

__all__ = ["Found", "GroupSurvey", "Verdict", "groups_in"]

Verdict: TypeAlias = Literal["good", "damaged", "foreign"]

_NUMBER = re.compile(r"\d{1,20}")
_ENTRY = re.compile(r"\d{1,20}\.batch")
_GROUP = re.compile(r"(training|validation)-\d+")
_PADDING = 64


@final
@dataclass(frozen=True, slots=True)
class Found:
    """One entry, by its path within the group's directory, and what is to be said of it."""

    path: tuple[str, str, str]
    nbytes: int
    verdict: Verdict
    reason: str = ""

    @property
    def name(self) -> str:
        """Its path as text."""
        return "/".join(self.path)


@final
@dataclass(slots=True)
class GroupSurvey:
    """One group's directory: its identity, or why it has none, and its entries."""

    path: Path
    directory: Directory
    identity: Identity | None = None
    problem: str = ""
    strange: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> GroupSurvey:
        """Open one. What is wrong with its identity is in ``problem``."""
        survey = cls(path, Directory.open(path))
        try:
            survey.identity = read_identity(survey.directory, path)
        except (AioLoaderError, OSError) as error:
            survey.problem = str(error)
        else:
            if survey.identity is None:
                survey.problem = f"{path / IDENTITY} is not there"
        return survey

    def entries(self) -> Iterator[tuple[str, str, str]]:
        """Yield the paths of all entries, in the order of their numbers.

        What else lies where entries do is added to ``strange``.
        """
        self.strange.clear()
        for epoch in self._numbered(self.directory, "", _NUMBER):
            folder = self._enter(self.directory, epoch, epoch)
            if folder is None:
                continue
            for shard in self._numbered(folder, f"{epoch}/", _NUMBER):
                inner = self._enter(folder, shard, f"{epoch}/{shard}")
                if inner is not None:
                    for name in self._numbered(inner, f"{epoch}/{shard}/", _ENTRY):
                        yield epoch, shard, name

    def temporaries(self) -> Counter[bool]:
        """Count unfinished files: those that a killed process left (True), and others."""
        names = [name for name in self.directory.names() if TEMPORARY.fullmatch(name)]
        return Counter(is_left_over(self.directory, name) for name in names)

    def size(self, path: tuple[str, str, str]) -> int:
        """Return the bytes of an entry, which need not be a file."""
        *folders, name = path
        folder = self.directory
        try:
            for each in folders:
                folder = folder.enter(each)
            return os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False).st_size
        except (OSError, NotPlain):
            return 0

    def judge(self, path: tuple[str, str, str]) -> Found | None:
        """Read an entry whole; None if it has gone meanwhile."""
        nbytes = self.size(path)
        try:
            descriptor = self.directory.open_file(*path)
            try:
                self._require_right(descriptor, path)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return None
        except Foreign as problem:
            return Found(path, nbytes, "foreign", str(problem))
        except (Damaged, NotPlain, OSError) as problem:
            return Found(path, nbytes, "damaged", str(problem))
        return Found(path, nbytes, "good")

    def remove(self, path: tuple[str, str, str]) -> None:
        """Remove an entry, and the directories that are empty without it."""
        epoch, shard, name = path
        folder = self.directory.enter(epoch)
        folder.enter(shard).remove(name)
        try:
            os.rmdir(shard, dir_fd=folder.descriptor)
            os.rmdir(epoch, dir_fd=self.directory.descriptor)
        except OSError:
            return

    def _require_right(self, descriptor: int, path: tuple[str, str, str]) -> None:
        header, checksums = Header.read(descriptor, self._most())
        if header.key.path != path:
            raise Foreign(f"it is entry {header.key}")
        if self.identity is not None and header.identity != self.identity.digest:
            raise Foreign("it was made under other settings")
        for number, expected in enumerate(checksums.tolist()):
            start = number * BLOCK
            raw = os.pread(descriptor, min(BLOCK, header.nbytes - start), header.start + start)
            if xxhash.xxh3_64_intdigest(raw) != expected:
                raise Damaged(f"block {number} of its arrays has another checksum")
        raw = os.pread(descriptor, header.extras_bytes, header.start + header.nbytes)
        require_extras(raw, header)
        try:
            decode_extras(raw, header.key.rows)
        except PickleRefused:  # whoever reads it has to allow that
            return
        except ValueError as error:
            raise Damaged(str(error)) from None

    def _most(self) -> int:
        """Return the bytes that the arrays of an entry may have, by the group's identity."""
        if self.identity is None:
            return 0
        try:
            sizes = [np.dtype(dtype).itemsize * count for dtype, count in self.identity.arrays]
        except Exception:  # of dtypes that are none NumPy says many things
            return 0
        return sum(sizes) + _PADDING * len(sizes)

    def _numbered(self, folder: Directory, where: str, pattern: re.Pattern[str]) -> Iterator[str]:
        names = []
        for name in folder.names():
            if pattern.fullmatch(name):
                names.append(name)
            elif folder is not self.directory or not (
                name == IDENTITY or TEMPORARY.fullmatch(name)
            ):
                self.strange.append(where + name)
        yield from sorted(names, key=lambda name: int(name.partition(".")[0]))

    def _enter(self, folder: Directory, name: str, where: str) -> Directory | None:
        try:
            return folder.enter(name)
        except (NotPlain, OSError):
            self.strange.append(where)
            return None


def groups_in(path: Path) -> list[Path]:
    """Return the groups' directories at a location, or the one that the path itself is."""
    if (path / IDENTITY).is_symlink() or (path / IDENTITY).exists():
        return [path.resolve()]
    return sorted(
        inner
        for inner in path.iterdir()
        if not inner.is_symlink()
        and inner.is_dir()
        and (_GROUP.fullmatch(inner.name) or (inner / IDENTITY).exists())
    )
