"""Segments: memory that other processes map by descriptor, and that has no name."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioloader._memory.mapping import map_descriptor
from aioloader._memory.segment import PrivateSegment, SharedSegment

if TYPE_CHECKING:
    from collections.abc import Callable

SEGMENTS: list[Callable[[int], Any]] = [PrivateSegment, SharedSegment]
TOO_MUCH = 1 << 50

READER = """
import sys
from aioloader._memory.mapping import map_descriptor
block = map_descriptor(int(sys.argv[1]), 8192)
assert block[:5] == b"hello", block[:5]
block[8187:] = b"world"
"""


@pytest.mark.parametrize("make", SEGMENTS)
def test_a_segment_is_writable_and_starts_as_zeros(make: Callable[[int], Any]) -> None:
    segment = make(8192)
    assert segment.nbytes == 8192
    array = np.frombuffer(segment.buffer, "uint8")
    assert not array.any()
    array[...] = 3
    assert segment.buffer[8191] == 3
    del array
    segment.close()


def test_a_shared_segment_is_the_same_memory_in_another_process() -> None:
    """What either side writes the other reads; the descriptor is all that is handed over."""
    segment = SharedSegment(8192)
    segment.buffer[:5] = b"hello"
    program = [sys.executable, "-c", READER, str(segment.descriptor)]
    subprocess.run(program, check=True, pass_fds=(segment.descriptor,), timeout=30)
    assert segment.buffer[8187:8192] == b"world"
    segment.close()


def test_a_shared_segment_has_no_name() -> None:
    """Nothing appears in the shared memory's directory, so nothing can be left there."""
    before = set(os.listdir("/dev/shm"))
    segment = SharedSegment(1 << 20)
    assert set(os.listdir("/dev/shm")) == before
    segment.close()


def test_a_shared_segment_is_reserved_at_once() -> None:
    """The space is there when the segment is, and not when it is first written to."""
    segment = SharedSegment(1 << 20)
    status = os.fstat(segment.descriptor)
    assert status.st_size == 1 << 20
    assert status.st_blocks * 512 >= 1 << 20
    segment.close()


def test_programs_that_are_started_do_not_inherit_the_memory() -> None:
    segment = SharedSegment(4096)
    assert not os.get_inheritable(segment.descriptor)
    segment.close()


@pytest.mark.parametrize("make", SEGMENTS)
def test_what_is_read_after_closing_is_still_there(make: Callable[[int], Any]) -> None:
    """Views keep the block alive, whoever else has let go of it."""
    segment = make(8192)
    segment.buffer[:3] = b"abc"
    array = np.frombuffer(segment.buffer, "uint8")
    segment.close()
    del segment
    gc.collect()
    assert bytes(array[:3]) == b"abc"
    array[8191] = 9


@pytest.mark.parametrize("make", SEGMENTS)
def test_closing_twice_is_harmless(make: Callable[[int], Any]) -> None:
    """Above all, it closes no descriptor that has been given to somebody else meanwhile."""
    segment = make(4096)
    segment.close()
    other = os.open("/dev/null", os.O_RDONLY)
    segment.close()
    os.close(other)


def test_a_closed_segment_holds_no_descriptor_and_no_memory() -> None:
    segment = SharedSegment(1 << 20)
    number = segment.descriptor
    segment.close()
    assert not os.path.exists(f"/proc/self/fd/{number}")
    assert "aioloader-arena" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("make", SEGMENTS)
def test_too_large_a_request_shows_the_arithmetic(make: Callable[[int], Any]) -> None:
    """It says what is needed, what there is, and what to change; nothing is left open."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(MemoryError, match=r"need 1,073,741,824\.0 MiB, and .* MiB are available"):
        make(TOO_MUCH)
    with pytest.raises(MemoryError, match=r"smaller depth or batch_size"):
        make(TOO_MUCH)
    assert os.listdir("/proc/self/fd") == before


def test_a_reservation_that_fails_shows_the_arithmetic_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the machine seems to have the memory and then has not; nothing is left open."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(MemoryError, match=r"need 1\.0 MiB of shared memory.*No space left"):
        SharedSegment(1 << 20)
    assert os.listdir("/proc/self/fd") == before


def test_mapping_a_descriptor_closes_it_also_when_that_fails() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=r"."):
        map_descriptor(os.open("/dev/null", os.O_RDONLY), 4096)
    assert os.listdir("/proc/self/fd") == before


def test_a_system_without_anonymous_files_uses_one_that_is_already_deleted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    segment = SharedSegment(8192)
    assert list(tmp_path.iterdir()) == []
    segment.buffer[:5] = b"hello"
    assert map_descriptor(os.dup(segment.descriptor), 8192)[:5] == b"hello"
    segment.close()


def test_a_segment_grows_under_its_views() -> None:
    """What was mapped before is the same memory as the first part of what is mapped then."""
    segment = SharedSegment(8192)
    before = np.frombuffer(segment.buffer, "uint8")
    before[...] = 3
    segment.grow(1 << 20)
    assert segment.nbytes == os.fstat(segment.descriptor).st_size == 1 << 20
    assert os.fstat(segment.descriptor).st_blocks * 512 >= 1 << 20
    after = np.frombuffer(segment.buffer, "uint8")
    assert (after[:8192] == 3).all()
    assert not after[8192:].any()
    after[5] = 4
    assert before[5] == 4
    segment.close()


def test_growth_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    segment = SharedSegment(8192)
    with pytest.raises(MemoryError, match="are available"):
        segment.grow(TOO_MUCH)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MemoryError, match="No space left"):
        segment.grow(1 << 20)
    assert segment.nbytes == len(segment.buffer) == 8192
    assert os.fstat(segment.descriptor).st_size == 8192
    segment.close()
