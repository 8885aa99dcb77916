"""Damage: whatever becomes of an entry's bytes, it is right or not there, and counted."""

from __future__ import annotations

import functools
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xxhash
from disk_bench import (
    ARRAYS,
    NAME,
    ROWS,
    Warnings,
    age_of,
    batch,
    content,
    extras,
    fill,
    identity,
    key,
    layouts_of,
    opened,
    path_of,
    raw,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import until

from aioloader._caches import disk
from aioloader._caches.disk import CacheCounts
from aioloader._caches.entry import _CHECKSUM, _START, BLOCK, Damaged, EntryFormat, Foreign

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAGE = 4096
LARGE = {"x": ((BLOCK // ROWS + 1000,), "float32", "float32"), "y": ((9,), "uint8", "uint8")}
LAYOUTS = layouts_of(LARGE)


def truncated(data: bytearray, other: bytes, page: slice) -> bytes:
    return bytes(data[: page.start])


def flipped(data: bytearray, other: bytes, page: slice) -> bytes:
    data[(page.start + min(page.stop, len(data))) // 2] ^= 0x10
    return bytes(data)


def zeroed(data: bytearray, other: bytes, page: slice) -> bytes:
    data[page] = bytes(len(data[page]))
    return bytes(data)


def swapped(data: bytearray, other: bytes, page: slice) -> bytes:
    data[page] = other[page]
    return bytes(data)


def cut_out(data: bytearray, other: bytes, page: slice) -> bytes:
    del data[page]
    return bytes(data)


def doubled(data: bytearray, other: bytes, page: slice) -> bytes:
    data[page] = data[page] * 2
    return bytes(data)


@pytest.mark.parametrize(
    "harm", [truncated, flipped, zeroed, swapped, cut_out, doubled], ids=lambda f: f.__name__
)
async def test_damage_to_any_page_is_a_miss(
    tmp_path: Path, harm: Callable[[bytearray, bytes, slice], bytes]
) -> None:
    """Of the header, of the arrays, of the additional data; and the next write mends it."""
    wide = {"note": ["x" * 3000] * ROWS}
    async with opened(tmp_path, layouts=LAYOUTS) as cache:
        for index in (0, 1):
            await cache.write(key(index), batch(key(index), LAYOUTS), wide, None)
        whole, other = (path_of(tmp_path, key(index)).read_bytes() for index in (0, 1))
        assert len(whole) > 4 * BLOCK
        done = harmless = 0
        for start in range(0, len(whole), PAGE):
            damaged = harm(bytearray(whole), other, slice(start, start + PAGE))
            path = path_of(tmp_path, key())
            path.unlink()
            path.write_bytes(damaged)
            found = await cache.read(key())
            if damaged == whole:  # the page is the same in both entries
                harmless += 1
                assert found is not None
            else:
                done += 1
                assert found is None, f"page at {start}"
        counts = cache.counts
        assert counts.damaged + counts.mismatched == done
        assert done >= len(whole) // PAGE - 5
        assert counts.hits == harmless
        await cache.write(key(), batch(key(), LAYOUTS), wide, None)
        found = await cache.read(key())
        assert found is not None
        assert content(found) == raw(batch(key(), LAYOUTS))


async def test_each_damaged_entry_is_logged_once_and_very_many_are_not(tmp_path: Path) -> None:
    """All are counted."""
    keys = [key(index) for index in range(15)]
    async with opened(tmp_path) as cache:
        await fill(cache, *keys)
        for each in keys:
            path_of(tmp_path, each).write_bytes(b"nothing that anybody knows")
        with Warnings() as warnings:
            for _ in range(2):
                for each in keys:
                    assert await cache.read(each) is None
        assert cache.counts.damaged == 30
        assert len(warnings) == 10
        assert str(tmp_path / NAME) in warnings[0]
        assert "0/0/0.batch is damaged: it does not begin as an entry does" in warnings[0]
        assert "only counted" in warnings[-1]


async def test_trusted_arrays_are_not_read_and_all_else_is_still_checked(tmp_path: Path) -> None:
    """That is what ``verify=False`` means."""
    async with opened(tmp_path, verify=False) as cache:
        await fill(cache, key())
        path = path_of(tmp_path, key())
        whole = path.read_bytes()
        for where, served in ((PAGE + 5, True), (len(whole) - 3, False), (70, False)):
            data = bytearray(whole)
            data[where] ^= 1
            path.unlink()
            path.write_bytes(data)
            assert (await cache.read(key()) is not None) is served


@functools.cache
def _whole(directory: Path) -> tuple[bytes, Path]:
    path = directory / "entry"
    form = EntryFormat(identity().digest, layouts_of(ARRAYS), allow_pickle=False)
    pieces = form.encode(key(3), batch(key(3)), extras(key(3)))
    whole = b"".join(bytes(piece) for piece in pieces)
    path.write_bytes(whole)
    return whole, path


def outcome(path: Path) -> Any:
    """Open an entry as a cache does; returns the bytes, or None for one that is refused."""
    form = EntryFormat(identity().digest, layouts_of(ARRAYS), allow_pickle=False)
    with open(path, "rb") as file:
        try:
            found = form.open(file.fileno(), key(3), verify=True)
        except (Damaged, Foreign):
            return None
    return content(found), found.extras


def with_checksum(data: bytearray, length: int = PAGE) -> bytes:
    """Make the header's own checksum right, as somebody who means harm would."""
    data[_CHECKSUM] = bytes(8)
    data[_CHECKSUM] = xxhash.xxh3_64_digest(bytes(data[:length]))
    return bytes(data)


spots = st.integers(0, _START.size + 40)


@given(
    changes=st.lists(st.tuples(spots, st.binary(min_size=1, max_size=8)), min_size=1, max_size=4),
    honest=st.booleans(),
)
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_header_is_refused_or_right(
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[int, bytes]],
    honest: bool,
) -> None:
    """Also where its checksum is right: no other exception, and no byte that was not written."""
    whole, path = _whole(tmp_path_factory.getbasetemp())
    data = bytearray(whole)
    for where, value in changes:
        data[where : where + len(value)] = value
    path.write_bytes(bytes(data) if honest else with_checksum(data))
    got = outcome(path)
    assert got is None or got == (raw(batch(key(3))), extras(key(3)))


FIELDS = _START.unpack_from  # magic, version, block, checksum, identity, layout, numbers
huge = st.sampled_from([0, 1, 4096, 1 << 20, 1 << 40, 1 << 62, (1 << 64) - 1, (1 << 64) - PAGE])


@given(numbers=st.lists(huge | st.none(), min_size=8, max_size=8))
@example(numbers=[None, None, None, None, 1 << 40, None, None, None])
@example(numbers=[None, None, None, None, None, 1 << 40, None, None])
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_numbers_in_a_header_are_refused_or_right(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int | None]
) -> None:
    """Lengths of a terabyte and the like, under a checksum that is right."""
    whole, path = _whole(tmp_path_factory.getbasetemp())
    data = bytearray(whole)
    size = _START.size - 8 * len(numbers)
    for place, number in enumerate(numbers):
        if number is not None:
            struct.pack_into("<Q", data, size + 8 * place, number)
    path.write_bytes(with_checksum(data))
    got = outcome(path)
    assert got is None or got == (raw(batch(key(3))), extras(key(3)))


async def test_a_file_that_changes_is_verified_again(tmp_path: Path) -> None:
    """Though this process has verified it before, and its length is the same."""
    async with opened(tmp_path) as cache:
        await fill(cache, key())
        path = path_of(tmp_path, key())
        await until(lambda: age_of(path) > 0.2)
        before = len(disk._verified)
        assert await cache.read(key()) is not None
        assert len(disk._verified) == before + 1
        with open(path, "r+b") as file:
            file.seek(PAGE + 7)
            byte = file.read(1)[0]
            file.seek(PAGE + 7)
            file.write(bytes([byte ^ 1]))
        assert await cache.read(key()) is None
        assert cache.counts == CacheCounts(hits=1, damaged=1, written=1)


async def test_arrays_that_are_changed_in_memory_do_not_reach_the_file(tmp_path: Path) -> None:
    """Bytes are written as they were when their checksums were made, or found out later."""
    async with opened(tmp_path) as cache:
        arrays = {name: np.array(array) for name, array in batch(key()).items()}
        await cache.write(key(), arrays, extras(key()), None)
        found = await cache.read(key())
        assert found is not None
        arrays["image"][...] = 0
        assert content(found) == raw(batch(key()))
