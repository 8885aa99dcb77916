"""Keys: chosen by patterns, listed page by page, and kept in an index file."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
from typing import TYPE_CHECKING, Any

import obstore
import pytest
import xxhash
from obstore.store import MemoryStore

from aioloader.sources import (
    CallableStore,
    IndexDamaged,
    ObjectInfo,
    ObjectStore,
    ObjectStoreSource,
)
from aioloader.sources.index import load_index, save_index
from aioloader.sources.keys import Keys, KeysBuilder
from aioloader.sources.listing import list_keys
from aioloader.sources.matching import pattern_regex

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

KEYS = ["a.jpg", "b/a.jpg", "b/a.png", "b/c/d.jpg", "b/c/[x].txt", "b2/e.JPG", "ü/ö.jpg"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg"]),
        ("**/*.jpg", ["a.jpg", "b/a.jpg", "b/c/d.jpg", "ü/ö.jpg"]),
        ("b/**", ["b/a.jpg", "b/a.png", "b/c/d.jpg", "b/c/[x].txt"]),
        ("b/*", ["b/a.jpg", "b/a.png"]),
        ("**/a.{jpg,png}", ["a.jpg", "b/a.jpg", "b/a.png"]),
        ("b?/*", ["b2/e.JPG"]),
        ("b[0-9]/*", ["b2/e.JPG"]),
        ("[!b]/*", ["ü/ö.jpg"]),
        ("**/[[]x].txt", ["b/c/[x].txt"]),
        ("b/*/d.jpg", ["b/c/d.jpg"]),
        ("nothing", []),
    ],
)
def test_patterns_choose_keys(pattern: str, expected: list[str]) -> None:
    """As globs of a shell with `globstar` do; a single star stays within its folder."""
    regex = pattern_regex(pattern)
    assert [key for key in KEYS if regex.fullmatch(key)] == expected


@pytest.mark.parametrize("pattern", ["a[b", "{a,b", "a/[!x"])
def test_patterns_that_are_not_closed_are_refused(pattern: str) -> None:
    """The message shows the pattern."""
    with pytest.raises(ValueError, match="not closed"):
        pattern_regex(pattern)


async def test_objects_are_listed_in_order_with_what_is_known_of_them(tmp_path: Path) -> None:
    """A local disk lists in any order; two lists of the same objects are the same."""
    for key in KEYS:
        (tmp_path / key).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / key).write_bytes(key.encode())
    keys = await list_keys(ObjectStore(tmp_path), "b", "**/*.jpg")
    assert list(keys) == ["b/a.jpg", "b/c/d.jpg"]
    assert keys.sizes is not None
    assert keys.sizes.tolist() == [7, 9]
    assert keys.wanted(0).etag

    async def get(key: str) -> bytes:
        return b""

    store = CallableStore(get, list=lambda _: ["c", "a", "b"])
    assert list(await list_keys(store)) == ["a", "b", "c"]


async def test_more_objects_than_a_page_has_are_all_listed() -> None:
    """Each once."""
    memory = MemoryStore()
    for n in range(1100):
        obstore.put(memory, f"{n:04}", b"")
    assert list(await list_keys(ObjectStore(memory))) == [f"{n:04}" for n in range(1100)]


async def test_an_s3_bucket_is_listed_by_part_of_a_name(s3: Any) -> None:
    """A prefix need not be a folder, which is all that obstore asks for."""
    url = s3.bucket({f"n/{i:04}": b"x" * (i % 7) for i in range(0, 1100, 100)})
    async with await ObjectStoreSource.listed(url, prefix="n/0", options=s3.options) as source:
        assert list(source.keys) == [f"n/{i:04}" for i in range(0, 1000, 100)]
        assert source.sizes is not None
        assert source.sizes.tolist() == [i % 7 for i in range(0, 1000, 100)]


async def test_pages_are_gone_through_as_they_come() -> None:
    """What is not chosen is not kept, however long the list is."""
    pages = 0

    class Endless:
        identity = "endless"

        async def list(self, prefix: str = "") -> AsyncIterator[Sequence[ObjectInfo]]:
            nonlocal pages
            for first in range(0, 20_000, 1000):
                pages += 1
                yield [ObjectInfo(f"{n:0200}", n, "e") for n in range(first, first + 1000)]

    tracemalloc.start()
    keys = await list_keys(Endless(), pattern="*9999")  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pages == 20
    assert [key.lstrip("0") for key in keys] == ["9999", "19999"]
    assert peak < 2 << 20


async def test_nothing_listed_is_said() -> None:
    """An empty source would be found out much later."""
    with pytest.raises(ValueError, match="no object of prefix='nowhere/'"):
        await ObjectStoreSource.listed(MemoryStore(), "nowhere/")


def test_keys_are_a_sequence() -> None:
    """Indices, slices, ranges, and what is known of each."""
    keys = Keys.of(["b", ("a", 2, 5), "ü"])
    assert (list(keys), keys[-1], list(keys[::2])) == (["b", "a", "ü"], "ü", ["b", "ü"])
    assert keys.wanted(1).item == ("a", 2, 5)
    assert list(keys.in_order()) == ["a", "b", "ü"]
    assert keys.in_order().wanted(0).nbytes == 3
    assert keys.sizes is None
    assert list(pickle.loads(pickle.dumps(keys))) == list(keys)
    with pytest.raises(IndexError):
        keys[3]


@pytest.mark.parametrize(
    "item", ["", ("a", 3, 3), ("a", -1, 3), ("a", 1), ("a", 0.0, 3), ("a", False, 3), 5, b"a", None]
)
def test_items_that_ask_for_nothing_are_refused(item: Any) -> None:
    """A key is text, and a range has bytes."""
    with pytest.raises((ValueError, TypeError), match=r"key|bytes"):
        Keys.of([item])


def some_keys(count: int) -> Keys:
    builder = KeysBuilder()
    builder.add_page(
        [ObjectInfo(f"train/{n:08d}.jpg", n, f'"{n:x}"') for n in range(count)], lambda _: True
    )
    return builder.build()


async def test_an_index_brings_back_what_was_listed(tmp_path: Path) -> None:
    """Keys, sizes, ETags and ranges; with a prefix and a pattern, some of them."""
    memory = MemoryStore()
    for n in range(20):
        obstore.put(memory, f"{n % 2}/{n:02}", bytes(n))
    source = await ObjectStoreSource.listed(memory)
    await source.save_index(tmp_path / "index")
    again = ObjectStoreSource.from_index(tmp_path / "index", memory)
    assert list(again.keys) == list(source.keys)
    assert [again.keys.wanted(i) for i in range(20)] == [source.keys.wanted(i) for i in range(20)]
    assert len(await again[5]) == source.keys.wanted(5).size
    some = ObjectStoreSource.from_index(tmp_path / "index", memory, prefix="1/", pattern="*/*[37]")
    assert list(some.keys) == ["1/03", "1/07", "1/13", "1/17"]
    assert len(await some[-1]) == 17

    ranges = ObjectStoreSource(memory, keys=["0/04", ("0/06", 1, 3)])
    await ranges.save_index(tmp_path / "index")
    assert ObjectStoreSource.from_index(tmp_path / "index", memory).keys.wanted(1).stop == 3
    assert os.listdir(tmp_path) == ["index"]


def test_many_keys_are_little_more_than_their_bytes(tmp_path: Path) -> None:
    """Loading copies none of them, and makes no object for each."""
    count = 20_000
    save_index(some_keys(count), tmp_path / "index")
    size = (tmp_path / "index").stat().st_size
    tracemalloc.start()
    keys = load_index(tmp_path / "index")
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert keys[-1] == f"train/{count - 1:08d}.jpg"
    assert now < size + (1 << 16)
    assert peak < 2 * size


def test_damaged_and_foreign_indices_are_told(tmp_path: Path) -> None:
    """Wherever a byte is changed or missing."""
    path = tmp_path / "index"
    save_index(some_keys(50), path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 23):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(IndexDamaged, match=r"index"):
            load_index(path)
    for length in (0, 5, 60, 200, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(IndexDamaged):
            load_index(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(IndexDamaged, match="not all of it"):
        load_index(path)
    path.write_bytes(pickle.dumps(["keys"]) + bytes(100))
    with pytest.raises(IndexDamaged, match="no index"):
        load_index(path)


def test_an_index_that_lies_about_its_texts_is_refused(tmp_path: Path) -> None:
    """Also when all checksums are right: ends have to rise, and to end with the texts."""
    keys = some_keys(3)
    parts = keys.parts()
    ends = parts["ends"].copy()
    for bad in ([5, 3, ends[-1]], [0, 1, ends[-1] - 1], [-8, 1, ends[-1]]):
        ends[:] = bad
        save_index(Keys.from_parts({**parts, "ends": ends}), tmp_path / "index")
        with pytest.raises(IndexDamaged, match="makes no sense"):
            load_index(tmp_path / "index")


def test_an_index_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no temporary file."""
    save_index(some_keys(3), tmp_path / "index")
    before = (tmp_path / "index").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_index(some_keys(4), tmp_path / "index")
    assert (tmp_path / "index").read_bytes() == before
    assert os.listdir(tmp_path) == ["index"]


def test_other_versions_of_the_format_are_told(tmp_path: Path) -> None:
    """An old program says that it cannot read a new index."""
    save_index(some_keys(3), tmp_path / "index")
    raw = bytearray((tmp_path / "index").read_bytes())
    struct.pack_into("<I", raw, 8, 99)
    raw[56:64] = xxhash.xxh3_64_digest(raw[:56])
    (tmp_path / "index").write_bytes(raw)
    with pytest.raises(IndexDamaged, match="version 99"):
        load_index(tmp_path / "index")
