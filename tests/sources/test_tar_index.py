"""Headers of tar files, whatever is in them; and the index that is made of them."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import lzma
import random
import tarfile
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from counting_store import CountingStore
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shards import FORMATS, samples, tar_of

from aioloader.sources import IndexDamaged, ObjectInfo, ShardError
from aioloader.sources.ranges import Ranges
from aioloader.sources.tar_headers import BLOCK, TarScan
from aioloader.sources.tar_index import TarIndex, by_basename
from aioloader.sources.tar_reading import scan_shards

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Found = list[tuple[str, int, int]]

LONG = "a/" * 70 + "picture.jpg"
VERY_LONG = "b/" * 300 + "picture.jpg"


def scanned(data: bytes, size: int | None = None) -> Found:
    """Return what a scan finds in a whole shard."""
    scan = TarScan("s.tar", size)
    scan.feed(data)
    return [(member.name, member.start, member.size) for member in scan.finish()]


def by_tarfile(data: bytes) -> Found | None:
    """Return what the standard library finds; None where it finds no tar file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
                return [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    except tarfile.TarError:
        return None


def header(name: str = "a.jpg", size: int = 0, form: str = "ustar", **fields: Any) -> bytearray:
    """Return the header of a file."""
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return bytearray(info.tobuf(FORMATS[form]))


def summed(block: bytearray, *, signed: bool = False) -> bytes:
    """Return a header with the right checksum."""
    block[148:156] = b" " * 8
    total = sum(memoryview(block).cast("b")) if signed else sum(block)
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


END = bytes(2 * BLOCK)


@pytest.mark.parametrize("form", FORMATS)
def test_files_of_all_formats_are_found(form: str) -> None:
    """With long and foreign names, empty contents, contents of a block, and padding."""
    files = {"a.jpg": b"", "b.jpg": bytes(512), "c.jpg": bytes(513), "ü/é.jpg": b"1"}
    files[LONG] = b"long"
    if form != "ustar":
        files[VERY_LONG] = b"longer"
    data = tar_of(files, form)
    found = scanned(data)
    assert found == by_tarfile(data)
    assert {name: data[start : start + size] for name, start, size in found} == files


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("piece", [1, 511, 700, 4096])
def test_it_may_come_in_pieces_of_any_size(form: str, piece: int) -> None:
    """As beside a download."""
    data = tar_of({**samples(3), LONG: b"1"}, form)
    scan = TarScan("s.tar")
    for at in range(0, len(data), piece):
        scan.feed(memoryview(data)[at : at + piece])
    assert [(m.name, m.start, m.size) for m in scan.finish()] == by_tarfile(data)
    with pytest.raises(ValueError, match="were left out"):
        TarScan("s.tar").feed(b"1", 1)


def test_contents_need_not_be_fed() -> None:
    """A scan says where it goes on; sizes over 8 GiB are in base 256, or in a PAX header."""
    huge = 20 << 30
    for form in ("gnu", "pax"):
        scan = TarScan("s.tar")
        head = bytes(header("a.jpg", huge, form))
        scan.feed(head)
        assert scan.wanted == len(head) + huge
        scan.feed(bytes(header("b.jpg")) + END, scan.wanted)
        assert [(m.name, m.size) for m in scan.finish()] == [("a.jpg", huge), ("b.jpg", 0)]


def test_old_headers_are_read() -> None:
    """Such without a magic, and such with signed checksums."""
    old = header("a.jpg", 1)
    old[257:265] = bytes(8)
    data = summed(old) + b"1" + bytes(511)
    data += summed(header("é.jpg"), signed=True) + END
    assert [name for name, _, _ in scanned(data)] == ["a.jpg", "é.jpg"]


def test_what_has_no_contents_is_left_out() -> None:
    """Directories, devices and FIFOs, whatever they say of their size; global PAX headers."""
    data = b""
    for kind in (tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE):
        block = header("x", type=kind)
        block[124:136] = b"00000070000\0"
        data += summed(block)
    data += tarfile.TarInfo.create_pax_global_header({"comment": "made by hand"})
    data += bytes(header("a.jpg")) + END
    assert [name for name, _, _ in scanned(data)] == ["a.jpg"]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (bytes(header(type=tarfile.LNKTYPE, linkname="b")), "hard link.*--hard-dereference"),
        (bytes(header(type=tarfile.SYMTYPE, linkname="b")), "symbolic link.*--dereference"),
        (bytes(header(type=tarfile.GNUTYPE_SPARSE)), "sparse file.*without `--sparse`"),
        (bytes(header(type=b"M")), "another volume"),
        (bytes(header(type=b"q")), "unknown kind"),
        (bytes(header(form="pax", pax_headers={"GNU.sparse.major": "1"})), "sparse file"),
        (bytes(header(form="pax", pax_headers={"size": "-1"})), "size is no number"),
        (tarfile.TarInfo.create_pax_global_header({"path": "b"}), "all files one path"),
        (bytes(header("c" * 200, form="gnu"))[:1024] + bytes(header("d" * 200, form="gnu")), "two"),
        (bytes(header("c" * 200, form="gnu"))[:1024] + END, "and there is none"),
        (bytes(header(form="pax", pax_headers={"a": "b" * (1 << 20)})), "extended header has"),
        (summed(header()[:124] + b"00000000009\0" + header()[136:]), "size is no number"),
        (summed(header()[:124] + b"\xff" * 12 + header()[136:]), "size is no number"),
        (bytes(BLOCK) + bytes(header()), "stands alone"),
        (bytes(header())[:148] + bytes(8) + bytes(header())[156:], "checksum is wrong"),
        (bytes(header())[:3] + b"x" + bytes(header())[4:], "checksum is wrong"),
        (b"<html></html>\n" * 50, "no header of a tar file"),
        (b"", "is empty"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(block: bytes, reason: str) -> None:
    """It is no silent loss, and names the shard and the place."""
    data = bytes(header("first.jpg")) + block + END if block else b""
    with pytest.raises(ShardError, match=reason) as caught:
        scanned(data)
    assert caught.value.shard == "s.tar"
    assert str(caught.value).startswith(f"s.tar, at byte {caught.value.offset:,}: ")
    assert (caught.value.offset >= BLOCK) == bool(block)


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (gzip.compress, "gzip.*`gunzip`"),
        (bz2.compress, "bzip2.*`bunzip2`"),
        (lzma.compress, "xz.*`unxz`"),
        (lambda data: b"\x28\xb5\x2f\xfd" + data, "zstd.*`zstd -d`"),
        (lambda data: b"\x04\x22\x4d\x18" + data, "lz4.*`lz4 -d`"),
    ],
)
@pytest.mark.parametrize("count", [0, 20])
def test_compressed_shards_are_refused_with_the_remedy(
    packed: Callable[[bytes], bytes], reason: str, count: int
) -> None:
    """However short they are."""
    with pytest.raises(ShardError, match=reason):
        scanned(packed(tar_of(samples(count))))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("known", [True, False])
def test_a_truncated_shard_is_an_error_wherever_it_was_cut(form: str, known: bool) -> None:
    """One block of zeros at the very end is an end; nothing less is."""
    data = tar_of({"a.jpg": bytes(700), LONG: b"1"}, form)
    found = by_tarfile(data)
    assert found is not None
    end = found[-1][1] + BLOCK
    assert scanned(data[: end + BLOCK]) == found
    for cut in (0, 1, 100, 511, 512, 513, 1200, 1536, 1600, 2048, end - 1, end, end + 511):
        size = cut if known else None
        with pytest.raises(ShardError, match=r"s\.tar, at byte .*(truncated|empty)"):
            scanned(data[:cut], size)


MUTATIONS = st.tuples(
    st.sampled_from(list(FORMATS)),
    st.lists(
        st.tuples(
            st.integers(0, 8 * BLOCK),
            st.sampled_from([0, 32, 48, 49, 55, 56, 76, 103, 120, 128, 255]),
            st.booleans(),
        ),
        min_size=1,
        max_size=3,
    ),
)


@given(MUTATIONS)
@example(("gnu", [(156, 75, True)]))
@settings(max_examples=150, deadline=None)
def test_a_damaged_header_never_gives_wrong_bytes(mutations: Any) -> None:
    """It is refused, or what the standard library reads is where it reads it.

    Where that stops at a header that it does not like, which is not said, there may be more.
    Parts of a name in a field that GNU headers do not have are ignored.
    """
    form, changes = mutations
    data = bytearray(tar_of({LONG: b"12", "b.jpg": bytes(700), "c.jpg": b"3"}, form))
    for at, value, sums in changes:
        data[at] = value
        if sums:
            begin = at - at % BLOCK
            data[begin : begin + BLOCK] = summed(data[begin : begin + BLOCK])
    try:
        found = scanned(bytes(data))
    except ShardError:
        return
    theirs = by_tarfile(bytes(data)) or []
    for mine, other in zip(found, theirs, strict=False):
        assert mine[1:] == other[1:]
        assert mine[0] == other[0] or form == "gnu"
    assert len(theirs) <= len(found)


@given(st.binary(max_size=2000), st.integers(1, 100))
@settings(max_examples=50, deadline=None)
def test_anything_else_is_refused(data: bytes, piece: int) -> None:
    """Without reading on for ever, and with no other error."""
    scan = TarScan("s.tar")
    with pytest.raises(ShardError):
        for at in range(0, len(data) or 1, piece):
            scan.feed(data[at : at + piece])
        scan.finish()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("most", [10, 2_000, 40_000, 400_000])
def test_headers_are_read_by_few_ranges(form: str, most: int) -> None:
    """As many requests as are allowed at most; contents that are long are left out."""
    data = tar_of(samples(12 if most > 100_000 else 40, most=most, folder="x/" * 60), form)
    store = CountingStore({"s.tar": data})
    info = store.info("s.tar")
    spare = 8

    async def main() -> Found:
        ((_, members),) = await scan_shards(Ranges(store), [info], spare_requests=spare)
        return [(m.name, m.start, m.size) for m in members]

    assert asyncio.run(main()) == by_tarfile(data)
    assert len(store.asked) <= spare + len(data) // 2**20 + 1
    assert store.bytes_asked <= len(data)
    assert max(stop - start for _, start, stop in store.asked) <= 4 << 20
    if most <= 2_000:
        assert len(store.asked) <= 3


def test_long_contents_are_stepped_over() -> None:
    """A header of each is all that is asked for."""
    data = tar_of({f"{number}.bin": bytes(1 << 20) for number in range(12)})
    store = CountingStore({"s.tar": data})
    asyncio.run(scan_shards(Ranges(store), [store.info("s.tar")], spare_requests=64))
    assert len(store.asked) <= 13
    assert store.bytes_asked < 200_000


def test_a_shard_that_promises_more_than_it_has_is_not_read_further() -> None:
    """Neither do sizes out of a damaged header lead beyond its end."""
    data = bytes(header("a.jpg", 1 << 40, "gnu")) + END
    store = CountingStore({"s.tar": data})
    with pytest.raises(ShardError, match=r"truncated: 'a.jpg' has 1,099,511,627,776 bytes"):
        asyncio.run(scan_shards(Ranges(store), [store.info("s.tar")], spare_requests=64))
    assert store.asked == [("s.tar", 0, len(data))]


def test_names_become_keys_and_fields_as_in_webdataset() -> None:
    """Up to the first dot of the last part, and after it in lower case."""
    names = {
        "a.jpg": ("a", "jpg"),
        "d.x/a.seg.PNG": ("d.x/a", "seg.png"),
        "./a.b": ("./a", "b"),
        "a.": ("a", ""),
        "a": None,
        ".hidden.jpg": None,
        "d/.hidden": None,
        "__meta.json__": None,
        "__d/a.json__": ("__d/a", "json__"),
        "d/__meta.json__": ("d/__meta", "json__"),
    }
    assert {name: by_basename(name) for name in names} == names


def index_of(*shards: bytes, **options: Any) -> TarIndex:
    """Return the index of shards."""
    found = []
    for number, data in enumerate(shards):
        scan = TarScan(f"{number}.tar")
        scan.feed(data)
        found.append((ObjectInfo(f"{number}.tar", len(data), f"tag{number}"), scan.finish()))
    return TarIndex.of(found, **options)


def test_samples_are_files_that_follow_each_other() -> None:
    """A key that comes again is another sample, also in another shard; others are left out."""
    one = tar_of({"a.jpg": b"1", "a.cls": b"2", "README": b"", "b.jpg": b"3", "./a.x": b"4"})
    two = tar_of({"a.jpg": b"5"})
    index = index_of(one, two)
    assert len(index) == 4
    places = [index[number] for number in range(4)]
    assert [(place.key, place.shard, place.fields) for place in places] == [
        ("a", 0, ("jpg", "cls")),
        ("b", 0, ("jpg",)),
        ("./a", 0, ("x",)),
        ("a", 1, ("jpg",)),
    ]
    assert [(one, two)[p.shard][start:stop] for p in places for start, stop in p.spans] == [
        *(b"1", b"2", b"3", b"4", b"5")
    ]
    with pytest.raises(ShardError, match=r"0\.tar.*'a' has more than one file 'jpg'"):
        index_of(tar_of({"a.jpg": b"", "a.JPG": b""}))


def test_a_function_may_group() -> None:
    """Its name is part of the index."""

    def by_folder(name: str) -> tuple[str, str] | None:
        folder, slash, last = name.rpartition("/")
        return (folder, last) if slash else None

    index = index_of(tar_of({"a/x.jpg": b"", "a/y.jpg": b"", "c": b""}), group_by=by_folder)
    assert (len(index), index[0].key, index[0].fields) == (1, "a", ("x.jpg", "y.jpg"))
    assert index.group_by.endswith("by_folder")


def test_an_index_is_saved_and_loaded(tmp_path: Path) -> None:
    """With names of any kind, empty or not; nothing else is left in the folder."""
    odd = tar_of({"é.jpg": b"1", b"\xff\xfe.jpg".decode("utf-8", "surrogateescape"): b"2"}, "gnu")
    for index in (index_of(odd, tar_of(samples(5)), odd), index_of()):
        path = tmp_path / "deep" / "shards.index"
        index.save(path)
        loaded = TarIndex.load(path)
        assert loaded == index
        assert hash(loaded) == hash(index)
        assert [loaded[n] for n in range(len(loaded))] == [index[n] for n in range(len(index))]
        assert loaded.shards == index.shards
        assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert repr(index_of(odd)) == "<TarIndex of 2 samples in 1 shards>"


def test_a_damaged_or_foreign_index_is_refused(tmp_path: Path) -> None:
    """Cut anywhere, or with any byte changed."""
    raw = index_of(tar_of(samples(5))).to_bytes()
    path = tmp_path / "shards.index"
    rng = random.Random(3)
    damaged = [raw[:-1], raw[:30], raw + b"1", b"", b"PK\3\4", *[bytearray(raw) for _ in range(30)]]
    for each in damaged[5:]:
        each[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)  # type: ignore[index]
    for each in damaged:
        path.write_bytes(each)
        with pytest.raises(IndexDamaged, match=r"shards\.index' is (damaged|no index)"):
            TarIndex.load(path)


def test_an_index_that_cannot_be_saved_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no other file."""
    path = tmp_path / "shards.index"
    index_of(tar_of(samples(2))).save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        index_of(tar_of(samples(9))).save(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
