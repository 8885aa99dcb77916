"""Mapped pages: read in ahead, and an error in place of a signal where that cannot be."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from disk_bench import Warnings, fill, is_right, key, opened, path_of

from aioloader._caches import entry, pages
from aioloader._caches.directory import Directory
from aioloader._caches.disk import CacheCounts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = mmap.PAGESIZE


@contextlib.contextmanager
def mapped(path: Path, size: int) -> Iterator[tuple[mmap.mmap, int]]:
    with path.open("wb", buffering=0) as file:
        while size > 0:  # in pieces, none of which is mapped by one fault
            size -= file.write(os.urandom(min(size, 64 << 10)))
    descriptor = os.open(path, os.O_RDWR)
    mapping = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    try:
        yield mapping, descriptor
    finally:
        os.close(descriptor)
        mapping.close()


@pytest.mark.parametrize("size", [1, PAGE, 3 * PAGE + 5, 5 << 20])
@pytest.mark.parametrize("cold", [False, True])
def test_pages_are_there_afterwards(tmp_path: Path, size: int, cold: bool) -> None:
    """Whether they were in memory before or not, and with the bytes of the file."""
    with mapped(tmp_path / "file", size) as (mapping, descriptor):
        if cold:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert pages.fault_in(mapping, descriptor)
        assert bytes(mapping) == (tmp_path / "file").read_bytes()


def test_a_file_that_has_become_shorter_is_an_answer(tmp_path: Path) -> None:
    """And not a SIGBUS, as it would be for who touches the mapping."""
    with mapped(tmp_path / "file", 8 * PAGE) as (mapping, descriptor):
        os.ftruncate(descriptor, PAGE)
        assert not pages.fault_in(mapping, descriptor)


def test_who_reads_a_mapping_that_has_been_touched_has_no_faults(tmp_path: Path) -> None:
    """They were another thread's, which had the time."""
    with mapped(tmp_path / "file", 8 << 20) as (mapping, _):
        pages.touch(mapping)
        whole = np.frombuffer(mapping, np.uint64)
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        whole.max()
        assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before < 16
        del whole


async def test_pages_that_the_system_cannot_read_are_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that has begun to fail."""
    async with opened(tmp_path) as cache:
        await fill(cache, key())
        monkeypatch.setattr(entry, "fault_in", lambda *args: False)
        assert await cache.read(key()) is None
        assert cache.counts == CacheCounts(damaged=1, written=1)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
async def test_a_mount_that_is_lost_costs_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Every entry is a miss then, with one warning; and a hit when it is there again."""
    original = Directory.open_file

    def lost(self: Directory, *names: str) -> Any:
        raise OSError(number, os.strerror(number))

    async with opened(tmp_path) as cache:
        await fill(cache, key(0), key(1))
        monkeypatch.setattr(Directory, "open_file", lost)
        with Warnings() as warnings:
            for index in (0, 1, 0, 1):
                assert await cache.read(key(index)) is None
        assert len(warnings) == 1
        assert os.strerror(number) in warnings[0]
        monkeypatch.setattr(Directory, "open_file", original)
        found = await cache.read(key())
        assert found is not None
        assert is_right(found, key())
        assert cache.counts == CacheCounts(hits=1, misses=4, written=2)


async def test_an_entry_is_read_from_a_cold_disk(tmp_path: Path) -> None:
    """Which is what a new run does."""
    async with opened(tmp_path, fsync=True) as cache:
        await fill(cache, key())
        descriptor = os.open(path_of(tmp_path, key()), os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        found = await cache.read(key())
        assert found is not None
        assert is_right(found, key())
