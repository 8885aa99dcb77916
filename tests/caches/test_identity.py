"""The settings of a cache: the same ones again, or an error that shows both."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

import msgspec
import pytest
from disk_bench import (
    IDENTITY,
    NAME,
    ROWS,
    batch,
    disk_cache,
    fill,
    identity,
    key,
    layouts_of,
    opened,
    path_of,
    raw,
    unfinished,
)

from aioloader.__main__ import main
from aioloader._caches.identity import Identity
from aioloader._memory.layout import view
from aioloader._order.group_order import GroupOrder
from aioloader.errors import CacheCorrupt, CacheMismatch

if TYPE_CHECKING:
    from pathlib import Path

DIFFERENT = {
    "batch_size": 8,
    "length": 101,
    "drop_remainder": True,
    "seed": 8,
    "shuffle_first": True,
    "shuffle_later": "itemwise",
    "arrays": (("uint8", 6), ("float32", 1)),
    "data": "version 2",
    "order": 2,
}


@pytest.mark.parametrize("field", DIFFERENT)
@pytest.mark.parametrize("readonly", [False, True])
async def test_other_settings_are_a_mismatch(tmp_path: Path, field: str, readonly: bool) -> None:
    """Which shows both sides, and where to look; the cache stays as it is."""
    async with opened(tmp_path):
        pass
    other = disk_cache(tmp_path, identity=identity(**{field: DIFFERENT[field]}), readonly=readonly)
    with pytest.raises(CacheMismatch) as caught:
        await other.open()
    said = str(caught.value)
    assert field in said
    assert str(tmp_path / NAME) in said
    assert "in the cache" in said
    assert len(said.splitlines()) == 3, "nothing else differs"
    await other.aclose()
    async with opened(tmp_path, readonly=True):
        pass


async def test_all_differences_are_shown(tmp_path: Path) -> None:
    """Not only the first."""
    async with opened(tmp_path):
        pass
    with pytest.raises(CacheMismatch) as caught:
        await disk_cache(tmp_path, identity=identity(**DIFFERENT)).open()
    assert all(name in str(caught.value) for name in DIFFERENT)
    assert "seed: 7 in the cache, 8 here" in str(caught.value)


async def test_names_and_shapes_of_arrays_may_change(tmp_path: Path) -> None:
    """As long as position, dtype and size stay."""
    async with opened(tmp_path) as cache:
        await fill(cache, key())
    arrays = {
        "picture": ((31, 25, 2), "uint8", "uint8"),
        "w": ((3, 1), "bfloat16", "float32"),
        "l": ((1,), "int64", "int32"),
    }
    layouts = layouts_of(arrays)
    same = Identity.of(
        NAME, GroupOrder(100, ROWS, 7, drop_remainder=False, shuffle_later="batchwise"), layouts,
        data="version 1", version=1,
    )  # fmt: skip
    assert same == IDENTITY
    async with opened(tmp_path, layouts=layouts) as cache:
        found = await cache.read(key())
        assert found is not None
        got = view(found.buffer, found.layouts, found.offset)
        assert got["picture"].shape == (ROWS, 31, 25, 2)
        assert list(raw(got).values()) == list(raw(batch(key())).values())


async def test_two_groups_in_one_location_never_meet(tmp_path: Path) -> None:
    """Each has a directory of its own, and its name is part of its identity."""
    async with opened(tmp_path) as one:
        other = identity(name="validation-0")
        async with opened(tmp_path, name="validation-0", identity=other) as two:
            await fill(one, key())
            assert await two.read(key()) is None
    os.rename(tmp_path / NAME, tmp_path / "training-1")
    with pytest.raises(CacheMismatch, match="group: 'training-0' in the cache, 'training-1' here"):
        await disk_cache(tmp_path, name="training-1", identity=identity(name="training-1")).open()


async def test_the_first_of_several_decides_the_settings(tmp_path: Path) -> None:
    """Who opens a new cache at the same moment with others finds theirs, whole."""
    caches = [disk_cache(tmp_path, identity=identity(seed=seed % 2)) for seed in range(8)]
    results = await asyncio.gather(*(cache.open() for cache in caches), return_exceptions=True)
    assert (
        sorted(type(result).__name__ for result in results)
        == ["CacheMismatch"] * 4 + ["NoneType"] * 4
    )
    for cache in caches:
        await cache.aclose()
    assert json.loads((tmp_path / NAME / "identity.json").read_text())["seed"] in (0, 1)
    assert unfinished(tmp_path) == []


async def test_a_newer_format_is_a_mismatch(tmp_path: Path) -> None:
    """Of the whole cache, or of one entry."""
    async with opened(tmp_path) as cache:
        await fill(cache, key())
        path = path_of(tmp_path, key())
        raw = bytearray(path.read_bytes())
        raw[8] += 1
        path.write_bytes(raw)
        assert await cache.read(key()) is None
        assert cache.counts.mismatched == 1
    newer = msgspec.structs.asdict(identity(format=2))
    (tmp_path / NAME / "identity.json").write_text(json.dumps({**newer, "more": [1]}))
    with pytest.raises(CacheMismatch, match="version 2 of the format"):
        await disk_cache(tmp_path).open()


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}', b'{"format": "x"}',
     b'{"format": 1, "seed": NaN}', b"x" * (1 << 21)],
    ids=range(10),
)  # fmt: skip
async def test_an_identity_of_nonsense_is_an_error_that_says_so(
    tmp_path: Path, text: bytes
) -> None:
    """Whoever wrote it: nothing is read or written under settings that nobody knows."""
    (tmp_path / NAME).mkdir()
    path = tmp_path / NAME / "identity.json"
    path.write_bytes(text)
    for readonly in (False, True):
        with pytest.raises(CacheCorrupt, match=r"identity\.json is not the identity of a cache"):
            await disk_cache(tmp_path, readonly=readonly).open()
    assert path.read_bytes() == text


async def test_an_identity_of_a_stranger_is_shown_safely(tmp_path: Path) -> None:
    """Without control characters, and without a megabyte of text."""
    (tmp_path / NAME).mkdir()
    made = identity(data="\x1b[31m" + "x" * 500_000, arrays=(("\x1b]0;", -1),) * 5000)
    (tmp_path / NAME / "identity.json").write_bytes(made.to_json())
    with pytest.raises(CacheMismatch) as caught:
        await disk_cache(tmp_path).open()
    assert len(str(caught.value)) < 3000
    assert "\x1b" not in str(caught.value)
    for action in ("info", "verify", "prune"):
        assert main(["cache", action, str(tmp_path)]) == 0
