"""A directory from a stranger: nothing in it is run, followed, waited for, or believed."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
import xxhash
from disk_bench import (
    NAME,
    ROWS,
    Warnings,
    batch,
    disk_cache,
    fill,
    identity,
    is_right,
    key,
    opened,
    path_of,
)
from test_encoding import Bomb

from aioloader._caches.disk import CacheCounts
from aioloader._caches.entry import _CHECKSUM, _START
from aioloader.errors import CacheCorrupt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAGE = 4096


async def test_a_pickle_bomb_in_additional_data_is_not_run(tmp_path: Path) -> None:
    """The entry is not used, and the warning says how it would be."""
    bomb = {"bomb": [Bomb(tmp_path / "struck")] * ROWS}
    async with opened(tmp_path / "cache", allow_pickle=True) as cache:
        await cache.write(key(), batch(key()), bomb, None)
        assert cache.counts.written == 1
    with Warnings() as warnings:
        for verify in (True, False):
            async with opened(tmp_path / "cache", verify=verify) as cache:
                assert await cache.read(key()) is None
                assert cache.counts == CacheCounts(mismatched=1)
    assert "pass allow_pickle=True" in warnings[0]
    assert not (tmp_path / "struck").exists()
    async with opened(tmp_path / "cache", allow_pickle=True) as cache:
        await cache.read(key())
    assert (tmp_path / "struck").exists(), "the bomb is one"


def a_link(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere)


def a_fifo(path: Path, elsewhere: Path) -> None:
    os.mkfifo(path)


def a_directory(path: Path, elsewhere: Path) -> None:
    path.mkdir()


def a_socket(path: Path, elsewhere: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(path.parent, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{folder}/{path.name}")  # a path may be too long for a socket
        os.close(folder)


def a_loop(path: Path, elsewhere: Path) -> None:
    path.symlink_to(path.name)


def a_terminal(path: Path, elsewhere: Path) -> None:
    path.symlink_to("/dev/ptmx")


KINDS = [a_link, a_fifo, a_directory, a_socket, a_loop, a_terminal]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
async def test_an_entry_that_is_no_file_is_not_opened(
    tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    """A link is not followed, though it leads to an entry that is right; a FIFO blocks nobody."""
    async with opened(tmp_path) as cache:
        await fill(cache, key(0), key(1))
        path = path_of(tmp_path, key())
        elsewhere = tmp_path / "elsewhere"
        path.rename(elsewhere)
        make(path, elsewhere)
        assert await cache.read(key()) is None
        assert cache.counts.damaged == 1
        if make is not a_directory:  # a file takes the place of anything else
            before = elsewhere.read_bytes()
            await fill(cache, key())
            found = await cache.read(key())
            assert found is not None
            assert is_right(found, key())
            assert not path.is_symlink()
            assert elsewhere.read_bytes() == before


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
async def test_an_identity_that_is_no_file_is_an_error(
    tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    """It is neither read nor replaced."""
    async with opened(tmp_path):
        pass
    path = tmp_path / NAME / "identity.json"
    path.rename(tmp_path / "elsewhere")
    make(path, tmp_path / "elsewhere")
    for readonly in (False, True):
        with pytest.raises(CacheCorrupt, match="is not the identity of a cache: it is"):
            await disk_cache(tmp_path, readonly=readonly).open()


@pytest.mark.parametrize("level", [0, 1, 2])
async def test_directories_that_lead_elsewhere_are_not_entered(tmp_path: Path, level: int) -> None:
    """Neither to read nor to write: nothing outside is touched."""
    async with opened(tmp_path / "other") as cache:
        await fill(cache, key())
    inside = path_of(tmp_path / "cache", key())
    outside = path_of(tmp_path / "other", key())
    if level < 2:
        async with opened(tmp_path / "cache"):
            pass
    for _ in range(level + 1):
        inside, outside = inside.parent, outside.parent
    inside.parent.mkdir(parents=True, exist_ok=True)
    inside.symlink_to(outside)
    before = sorted((tmp_path / "other").rglob("*"))
    if level == 2:
        with pytest.raises(CacheCorrupt, match="links are not followed"):
            await disk_cache(tmp_path / "cache").open()
    else:
        async with opened(tmp_path / "cache") as cache:
            assert await cache.read(key()) is None
            await fill(cache, key())
            assert cache.counts == CacheCounts(damaged=1, failed=1)
    assert sorted((tmp_path / "other").rglob("*")) == before


async def test_the_location_itself_may_be_a_link(tmp_path: Path) -> None:
    """The user has named it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    async with opened(tmp_path / "link") as cache:
        await fill(cache, key())
        assert await cache.read(key()) is not None
    assert path_of(tmp_path / "real", key()).exists()


def changed(whole: bytes, place: int, number: int) -> bytearray:
    """Return an entry with one of its header's last numbers changed, checksum included."""
    data = bytearray(whole)
    struct.pack_into("<Q", data, _START.size - 8 * place, number)
    data[_CHECKSUM] = bytes(8)
    data[_CHECKSUM] = xxhash.xxh3_64_digest(bytes(data[:PAGE]))
    return data


@pytest.mark.parametrize("place", [4, 3], ids=["arrays", "additional data"])
@pytest.mark.parametrize("sparse", [False, True])
async def test_a_length_of_a_terabyte_takes_no_memory(
    tmp_path: Path, place: int, sparse: bool
) -> None:
    """Also where the file is as long as it says, and has nothing in it."""
    terabyte = 1 << 40
    async with opened(tmp_path) as cache:
        await fill(cache, key())
        path = path_of(tmp_path, key())
        data = changed(path.read_bytes(), place, terabyte)
        path.unlink()
        path.write_bytes(data)
        if sparse:
            header = -(-(_START.size + 8 * (terabyte >> 18)) // PAGE) * PAGE if place == 4 else PAGE
            os.truncate(path, header + terabyte + 2 * len(data))
            arrays, additional = struct.unpack_from("<QQ", data, _START.size - 32)
            start = -(-(_START.size + 8 * -(-arrays // (1 << 18))) // PAGE) * PAGE
            os.truncate(path, start + arrays + additional)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert await cache.read(key()) is None
        assert cache.counts.damaged + cache.counts.mismatched == 1
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kilobytes"


async def test_strange_names_are_left_alone(tmp_path: Path) -> None:
    """Of what looks like an unfinished file, only a plain one of a dead process goes."""
    async with opened(tmp_path) as cache:
        await fill(cache, key())
    folder = tmp_path / NAME
    outside = tmp_path / "outside"
    outside.write_text("precious")
    names = ["..tmp", ".1-2.tmp", ".x-1-1.tmp", "\n", "%s%n", "a" * 200, ".1-2-3.tmp.tmp"]
    for name in names:
        (folder / name).write_text("x")
    (folder / ".999999999-1-0.tmp").symlink_to(outside)
    os.mkfifo(folder / ".999999999-1-1.tmp")
    (folder / ".999999999-1-2.tmp").mkdir()
    (folder / ".999999999-1-3.tmp").write_text("left over")
    async with opened(tmp_path) as cache:
        assert await cache.read(key()) is not None
    assert outside.read_text() == "precious"
    left = {path.name for path in folder.iterdir()}
    assert set(names) <= left
    assert ".999999999-1-3.tmp" not in left
    assert {f".999999999-1-{n}.tmp" for n in range(3)} <= left


async def test_a_directory_that_goes_away_costs_the_cache(tmp_path: Path) -> None:
    """While it is open: there are no entries in it then, and none can be written."""
    with Warnings() as warnings:
        async with opened(tmp_path) as cache:
            await fill(cache, key())
            shutil.rmtree(tmp_path / NAME)
            assert await cache.read(key()) is None
            await fill(cache, key(1), key(2))
            assert cache.counts == CacheCounts(misses=1, written=1, failed=2)
    assert len(warnings) == 1


async def test_a_file_in_place_of_the_directory_is_an_error(tmp_path: Path) -> None:
    """That names it."""
    (tmp_path / NAME).write_text("x")
    with pytest.raises(CacheCorrupt, match="not a directory"):
        await disk_cache(tmp_path).open()


async def test_a_location_that_is_a_file_costs_the_cache(tmp_path: Path) -> None:
    """A warning says so; everything is a miss."""
    (tmp_path / "file").write_text("x")
    with Warnings() as warnings:
        async with opened(tmp_path / "file") as cache:
            assert await cache.read(key()) is None
            await fill(cache, key())
            assert cache.counts == CacheCounts(misses=1, failed=1)
    assert len(warnings) == 1


async def test_an_identity_of_another_is_no_way_in(tmp_path: Path) -> None:
    """Names in it are never paths."""
    async with opened(tmp_path, name="a", identity=identity(name="../../etc")) as cache:
        await fill(cache, key())
    found: Any = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["a"]
