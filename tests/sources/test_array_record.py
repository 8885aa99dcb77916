"""ArrayRecordSource: records at random, of local files and of those that are downloaded."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from counting_store import CountingStore
from support import both_loops, run_on, until

from aioloader import (
    DataGroup,
    FetchError,
    FetchPolicy,
    Loader,
    MapDataset,
    MultiprocessingOptions,
)
from aioloader.sources import (
    ArrayRecordSource,
    ObjectInfo,
    ShardError,
    array_record_files,
    download,
)
from aioloader.sources.array_record_files import Readers
from aioloader.sources.download import Downloads
from aioloader.sources.ranges import Ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

COUNTS = (120, 7, 73)
ALL = [f"record {number:03}".encode() * (1 + number % 5) for number in range(sum(COUNTS))]
QUICK = FetchPolicy(backoff=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files."""
    root = tmp_path_factory.mktemp("records")
    records = iter(ALL)
    for number, count in enumerate(COUNTS):
        writer = ArrayRecordWriter(str(root / f"{number}.array_record"), "group_size:1")
        for _ in range(count):
            writer.write(next(records))
        writer.close()
    (root / "README").write_text("three files")
    return root


@pytest.fixture(scope="module")
def objects(folder: Path) -> dict[str, bytes]:
    """The same in a store."""
    return {f"train/{path.name}": path.read_bytes() for path in folder.iterdir()}


def with_records(
    main: Callable[[ArrayRecordSource], Coroutine[Any, Any, Any]],
    store: Any,
    *args: Any,
    **options: Any,
) -> Any:
    """Run a function of an open source to its end."""

    async def run() -> Any:
        async with ArrayRecordSource(store, *args, **options) as source:
            return await main(source)

    return asyncio.run(run())


async def everything(source: ArrayRecordSource) -> list[memoryview]:
    """Return all records, asked for in no order."""
    numbers = random.Random(6).sample(range(len(source)), len(source))
    found = dict(zip(numbers, await asyncio.gather(*map(source.fetch, numbers)), strict=True))
    return [found[number] for number in range(len(source))]


@both_loops
def test_records_of_all_files_come_in_their_order(loop: str, folder: Path) -> None:
    """As read-only views; indices are checked as a list's."""

    async def main() -> None:
        async with ArrayRecordSource(folder) as source:
            assert len(source) == 200
            for number in (0, 119, 120, 126, 127, 199, -1, -200, np.int64(5)):
                record = await source[number]
                assert record == ALL[number]
                assert isinstance(record, memoryview)
                assert record.readonly
            assert await source.fetch(-2) == ALL[-2]
            for wrong, error in ((200, IndexError), (-201, IndexError), (True, TypeError)):
                with pytest.raises(error, match="index="):
                    await source[wrong]
            assert await everything(source) == ALL
            assert repr(source).endswith(": 200 records>")

    run_on(loop, main())


def test_records_of_one_turn_are_one_call_for_each_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order in which they lie, up to 256 by one call."""
    calls: list[tuple[str, list[int]]] = []
    read = Readers.read

    def counted(self: Readers, path: Any, info: Any, numbers: Any) -> Any:
        calls.append((info.key, list(numbers)))
        return read(self, path, info, numbers)

    monkeypatch.setattr(Readers, "read", counted)

    async def main(source: ArrayRecordSource) -> None:
        assert await everything(source) == ALL
        assert sorted(calls) == [
            (f"{number}.array_record", list(range(count))) for number, count in enumerate(COUNTS)
        ]

    with_records(main, folder)


def test_paths_and_urls_may_be_of_a_folder_a_file_or_several(folder: Path, tmp_path: Path) -> None:
    """Or files may be named apart."""
    (tmp_path / "set.v1").symlink_to(folder)

    async def length(source: ArrayRecordSource) -> int:
        return len(source)

    for place in (str(folder), f"{folder}/", folder.as_uri(), f"{folder}/*.array_record"):
        assert with_records(length, place) == 200
    assert with_records(length, tmp_path / "set.v1") == 200
    assert with_records(length, folder / "1.array_record") == 7
    assert with_records(length, folder, "{0,1}.array_record") == 127


def test_before_it_is_open_it_says_what_to_do(folder: Path) -> None:
    """Like every source."""
    with pytest.raises(RuntimeError, match=r"await source\.open\(\)"):
        len(ArrayRecordSource(folder))


def test_after_it_was_closed_files_are_opened_again(folder: Path) -> None:
    """Closing leaves no descriptor."""
    before = set(os.listdir("/proc/self/fd"))

    async def main() -> set[str]:
        source = await ArrayRecordSource(folder).open()
        assert await source[5] == ALL[5]
        await source.aclose()
        left = set(os.listdir("/proc/self/fd")) - inside
        assert await source[130] == ALL[130]
        await source.aclose()
        return left

    async def run() -> set[str]:
        nonlocal inside
        inside = set(os.listdir("/proc/self/fd"))
        return await main()

    inside: set[str] = before
    assert asyncio.run(run()) == set()


@pytest.mark.parametrize("change", ["short", "junk", "cut", "flip"])
def test_what_is_damaged_is_an_error_and_never_a_record(
    change: str, folder: Path, tmp_path: Path
) -> None:
    """When it is opened, or when it is read."""
    data = bytearray((folder / "0.array_record").read_bytes())
    if change == "short":
        data = data[:1000]
    elif change == "junk":
        data[:] = os.urandom(len(data))
    elif change == "cut":
        data = data[: len(data) // 2]
    else:
        for at in range(64, 4096):
            data[at] ^= 0xFF
    path = tmp_path / "0.array_record"
    path.write_bytes(data)

    async def main() -> None:
        source = await ArrayRecordSource(path).open()
        for number in range(0, 120, 7):
            assert await source[number] == ALL[number]

    with pytest.raises((ShardError, FetchError), match=r"0\.array_record, at byte"):
        asyncio.run(main())


class _Failing:
    """A reader that opens, and then reads as it is told to."""

    opened = 0
    records: ClassVar[list[bytes]] = []
    is_ok = True

    def __init__(self, path: str, options: str) -> None:
        _Failing.opened += 1
        self._asked = False

    def ok(self) -> bool:
        return self.is_ok or not self._asked

    def num_records(self) -> int:
        return 10

    def read(self, numbers: list[int]) -> list[bytes]:
        self._asked = True
        return self.records


def test_a_read_that_says_nothing_of_its_failure_is_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few records, or a reader that is not well; the next read opens the file again."""
    module = SimpleNamespace(ArrayRecordReader=_Failing)
    monkeypatch.setattr(array_record_files, "_array_record", lambda: module)
    path = folder / "0.array_record"
    info = ObjectInfo("0.array_record", path.stat().st_size)
    readers = Readers()
    for opened, (records, is_ok) in enumerate(([[b"1"], True], [[b"", b""], False]), 1):
        _Failing.records, _Failing.is_ok = records, is_ok
        with pytest.raises(ShardError, match="records of 3 to 4 cannot be read"):
            readers.read(path, info, [3, 4])
        assert _Failing.opened == opened
    _Failing.records, _Failing.is_ok = [b"1", b"2"], True
    assert readers.read(path, info, [3, 4]) == readers.read(path, info, [3, 4]) == [b"1", b"2"]
    assert _Failing.opened == 3


def test_a_file_that_has_changed_or_is_gone_is_an_error(folder: Path, tmp_path: Path) -> None:
    """Where it is opened again."""
    path = tmp_path / "0.array_record"
    path.write_bytes((folder / "0.array_record").read_bytes())

    async def main() -> None:
        source = await ArrayRecordSource(path).open()
        await source.aclose()
        with path.open("ab") as file:
            file.write(b"more")
        with pytest.raises(FetchError, match=r"record 3 could not be.*ObjectChanged"):
            await source[3]
        path.unlink()
        with pytest.raises(FetchError, match=r"record 3 could not be.*FileNotFoundError"):
            await source[3]

    asyncio.run(main())


def test_remote_files_are_downloaded_once(objects: dict[str, bytes], tmp_path: Path) -> None:
    """By ranges; whoever opens the source again finds them, and what is missing is fetched."""
    store = CountingStore(objects)
    files = tmp_path / "new" / "files"

    async def first(source: ArrayRecordSource) -> None:
        assert await everything(source) == ALL
        assert source.statistics().requests == 1 + 3  # a listing, and a range of each

    async def again(source: ArrayRecordSource) -> None:
        assert await everything(source) == ALL
        assert source.statistics().requests == 1
        await source.aclose()
        for path in files.iterdir():
            path.unlink()
        assert await source[-1] == ALL[-1]
        assert source.statistics().requests == 2

    with_records(first, store, directory=files)
    assert len(list(files.iterdir())) == 3
    assert store.bytes_asked == sum(len(data) for key, data in objects.items() if "." in key)
    with_records(again, store, directory=files)


def test_a_remote_store_needs_a_directory(objects: dict[str, bytes]) -> None:
    """It says so at once."""
    with pytest.raises(ValueError, match="directory= to which those of counting://"):
        ArrayRecordSource(CountingStore(objects))


def test_a_download_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever breaks it off: an error, or a cancellation; in parts, each tried again."""
    monkeypatch.setattr(download, "_PART", 40_000)
    data = random.Random(1).randbytes(100_000)
    store = CountingStore({"a/b c.bin": data, "empty": b""})
    downloads = Downloads(Ranges(store, QUICK), tmp_path)
    info = store.info("a/b c.bin")

    async def main() -> None:
        store.failing = 100
        with pytest.raises(FetchError, match="ShortRead"):
            await downloads.get(info)
        assert list(tmp_path.iterdir()) == []
        store.failing = 0
        store.gate = asyncio.Event()
        asked = len(store.asked)
        task = asyncio.ensure_future(downloads.get(info))
        await until(lambda: len(store.asked) == asked + 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert list(tmp_path.iterdir()) == []
        store.gate = None
        store.failing = 2
        one, two = await asyncio.gather(downloads.get(info), downloads.get(info))
        assert one == two == downloads.path(info)
        assert one.name.endswith("-b_c.bin")
        assert one.read_bytes() == data
        assert (await downloads.get(store.info("empty"))).read_bytes() == b""
        one.write_bytes(data[:-1])
        assert (await downloads.get(info)).read_bytes() == data
        assert len(list(tmp_path.iterdir())) == 2

    asyncio.run(main())


def test_what_a_killed_program_left_is_removed_and_short_writes_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a disk or a share may write less than it is given."""
    data = random.Random(1).randbytes(100_000)
    store = CountingStore({"a": data})
    (tmp_path / ".4194304-12345-0.tmp").write_bytes(b"half")
    (tmp_path / "other.tmp").write_bytes(b"whole")
    write = os.pwrite
    monkeypatch.setattr("os.pwrite", lambda fd, raw, at: write(fd, bytes(raw[:30_001]), at))
    path = asyncio.run(Downloads(Ranges(store), tmp_path).get(store.info("a")))
    assert path.read_bytes() == data
    assert {each.name for each in tmp_path.iterdir()} == {path.name, "other.tmp"}


def test_an_object_that_has_changed_is_another_file(tmp_path: Path) -> None:
    """By its ETag, its size, its key or its store."""
    store = CountingStore({"a": b"12", "b": b"12"})
    downloads = Downloads(Ranges(store), tmp_path)
    paths = {downloads.path(store.info("a")), downloads.path(store.info("b"))}
    store.objects["a"] = b"21"
    paths.add(downloads.path(store.info("a")))
    store.etags = False
    paths.add(downloads.path(store.info("a")))
    store.identity = "other://"
    paths.add(downloads.path(store.info("a")))
    assert len(paths) == 5
    assert pickle.loads(pickle.dumps(Downloads(Ranges(str(tmp_path)), tmp_path)))


def test_pickled_it_is_open(folder: Path) -> None:
    """Files are opened anew."""

    async def main(source: ArrayRecordSource) -> None:
        assert await source[5] == ALL[5]
        other = pickle.loads(pickle.dumps(source))
        assert await other[-1] == ALL[-1]
        assert await pickle.loads(pickle.dumps(source.fetch))(6) == ALL[6]
        await other.aclose()

    with_records(main, folder)


def test_it_is_a_source_of_datasets(folder: Path) -> None:
    """For both kinds of loops, and in workers."""
    source = asyncio.run(ArrayRecordSource(folder).open())
    dataset = MapDataset.source(source)[100:140].map(lambda record: len(record) + 1)
    wanted = [len(record) + 1 for record in ALL[100:140]]
    assert list(dataset) == wanted

    async def main() -> list[Any]:
        return [element async for element in dataset.to_iter_dataset()]

    assert asyncio.run(main()) == wanted
    options = MultiprocessingOptions(num_workers=1)
    with iter(dataset.to_iter_dataset().mp_prefetch(options)) as iterator:
        assert list(iterator) == wanted
    asyncio.run(source.aclose())


def load(item: memoryview, arrays: Any, seed: int | None) -> None:
    """Fill a row with what tells records apart."""
    arrays["number"][...] = int(bytes(item)[7:10])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_fetches_by_it(folder: Path, workers: int) -> None:
    """Records reach the load function whole."""

    async def main(source: ArrayRecordSource) -> None:
        arrays = {"number": ((), "int64", "int32")}
        group = DataGroup(20, range(len(source)), loader_arrays=arrays, seed=3)
        seen: list[int] = []
        async with Loader(
            load, group, fetch=source.fetch, num_workers=workers, end_at=("epoch", 1)
        ) as loader:
            async for batch in loader:
                seen += np.asarray(batch.arrays["number"]).tolist()
        assert sorted(seen) == list(range(200))

    with_records(main, folder)
