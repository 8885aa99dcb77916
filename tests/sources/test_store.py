"""Stores: every kind of them keeps the same contract."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import fsspec
import obstore
import pytest
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from obstore.store import MemoryStore
from servers.fixtures import Served, serving
from support import until

from aioloader.sources import (
    CallableStore,
    FsspecStore,
    ObjectChanged,
    ObjectStore,
    StoreError,
    open_store,
)
from aioloader.testing import Census, StoreContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping


def lay_out(folder: Path, objects: Mapping[str, bytes]) -> None:
    for key, content in objects.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


class TestMemory(StoreContract):
    """`memory://`."""

    @contextlib.asynccontextmanager
    async def make_store(self, objects: Mapping[str, bytes]) -> AsyncIterator[Any]:
        memory = MemoryStore()
        for key, content in objects.items():
            obstore.put(memory, key, content)
        yield open_store(memory)


class TestDisk(StoreContract):
    """`file://`."""

    @contextlib.asynccontextmanager
    async def make_store(self, objects: Mapping[str, bytes]) -> AsyncIterator[Any]:
        with TemporaryDirectory() as folder:
            lay_out(Path(folder), objects)
            yield open_store(f"file://{folder}")


class TestS3(StoreContract):
    """`s3://`, with a prefix."""

    @pytest.fixture(autouse=True)
    def _server(self, s3: Any) -> None:
        self._s3 = s3

    @contextlib.asynccontextmanager
    async def make_store(self, objects: Mapping[str, bytes]) -> AsyncIterator[Any]:
        url = self._s3.bucket({f"some/prefix/{k}": v for k, v in objects.items()})
        store = open_store(f"{url}/some/prefix", **self._s3.options)
        yield store
        await store.aclose()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A web server for the objects of the contract."""
    with serving(tmp_path_factory.mktemp("objects")) as served:
        yield served


class TestWeb(StoreContract):
    """`http://`, which has no lists."""

    lists = False

    @pytest.fixture(autouse=True)
    def _server(self, files: Served) -> None:
        self._files = files

    @contextlib.asynccontextmanager
    async def make_store(self, objects: Mapping[str, bytes]) -> AsyncIterator[Any]:
        lay_out(self._files.folder, objects)
        store = open_store(self._files.url)
        yield store
        await store.aclose()


class TestFsspecInThreads(StoreContract):
    """A file system of fsspec's without coroutines."""

    has_etags = False

    @contextlib.asynccontextmanager
    async def make_store(self, objects: Mapping[str, bytes]) -> AsyncIterator[Any]:
        with TemporaryDirectory() as folder:
            lay_out(Path(folder), objects)
            yield FsspecStore(fsspec.filesystem("file"), folder)


class TestFsspecAwaited(StoreContract):
    """One with coroutines, awaited where it is used."""

    has_etags = False

    @contextlib.asynccontextmanager
    async def make_store(self, objects: Mapping[str, bytes]) -> AsyncIterator[Any]:
        with TemporaryDirectory() as folder:
            lay_out(Path(folder), objects)
            awaited = AsyncFileSystemWrapper(fsspec.filesystem("file"), asynchronous=True)
            yield FsspecStore(awaited, folder)


class TestFunctions(StoreContract):
    """Coroutine functions over aiohttp."""

    lists = False
    has_etags = False

    @pytest.fixture(autouse=True)
    def _server(self, files: Served) -> None:
        self._files = files

    @contextlib.asynccontextmanager
    async def make_store(self, objects: Mapping[str, bytes]) -> AsyncIterator[Any]:
        lay_out(self._files.folder, objects)
        async with aiohttp.ClientSession() as session:

            async def get(key: str) -> bytes:
                async with session.get(f"{self._files.url}/{quote(key)}") as answer:
                    answer.raise_for_status()
                    return await answer.read()

            yield CallableStore(get, identity=self._files.url)


async def error_of(request: Any) -> StoreError:
    with pytest.raises(StoreError) as caught:
        await request
    return caught.value


async def test_errors_of_servers_tell_what_may_pass(web: Served) -> None:
    """Statuses are found where obstore hides them, and broken connections are told apart."""
    store = ObjectStore(web.url, timeout=0.5)
    for kind, status, passes in (
        ("408", 408, True),
        ("429", 429, True),
        ("500", 500, True),
        ("503", 503, True),
        ("reset", None, True),
        ("truncate", None, True),
        ("stall", None, True),
    ):
        web.set(faults=1, kinds=kind)
        error = await error_of(store.get("o/001"))
        assert (error.status, error.passes) == (status, passes), kind
        assert str(error).startswith("o/001: "), kind
        assert "\n" not in str(error)
        assert error.__context__ is None
    await store.aclose()


async def test_its_own_client_neither_retries_nor_gives_up_early(web: Served) -> None:
    """One call is one request."""
    web.set(faults=1, kinds="503")
    store = ObjectStore(web.url)
    await error_of(store.get("o/001"))
    assert web.counts()["requests"] == 1
    await store.aclose()


async def test_nobody_there_is_an_error_that_may_pass(tmp_path: Path) -> None:
    """Refused connections pass; a folder that is not there does not."""
    error = await error_of(ObjectStore("http://127.0.0.1:1/").get("a"))
    assert error.passes
    assert "refused" in str(error)
    error = await error_of(ObjectStore(tmp_path / "none").get("a"))
    assert not error.passes


async def test_keys_that_no_store_has_are_errors_that_stay(tmp_path: Path) -> None:
    """A key cannot leave the store."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").write_bytes(b"not to be read")
    store = ObjectStore(tmp_path / "inside")
    for key in ("../secret", "a//b", "a\nb"):
        assert not (await error_of(store.get(key))).passes


async def test_connections_are_kept_and_closed_in_the_end(web: Served) -> None:
    """As many as are used at once are used again; `aclose` leaves none."""
    before = Census.take().descriptors
    store = ObjectStore(web.url)
    web.set(latency=0.02)
    for _ in range(3):
        await asyncio.gather(*[store.get(f"o/{n:03}") for n in range(100)])
    assert web.counts()["connections"] <= 110
    await store.aclose()
    await until(lambda: not [n for n in Census.take().descriptors - before if "socket" in n])
    assert (await store.get("o/001"))[1].size > 0  # it opens again
    await store.aclose()


async def test_leaving_with_hundreds_in_flight_leaves_nothing(web: Served) -> None:
    """Cancelled requests end at once, and so do their connections."""
    before = Census.take().descriptors
    store = ObjectStore(web.url)
    web.set(latency=30)
    tasks = [asyncio.ensure_future(store.get(f"o/{n:03}")) for n in range(256)]
    await until(lambda: len(Census.take().descriptors - before) >= 200)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    await store.aclose()
    await until(lambda: not [n for n in Census.take().descriptors - before if "socket" in n])


async def test_weak_etags_are_compared_when_the_answer_is_there() -> None:
    """No server takes them in a request."""
    memory = MemoryStore()
    obstore.put(memory, "a", b"12")
    store = ObjectStore(memory)
    etag = (await store.head("a")).etag
    assert (await store.get("a", etag=f"W/{etag}"))[1].etag == etag
    assert type(await error_of(store.get("a", etag='W/"7"'))) is ObjectChanged


def test_stores_travel(tmp_path: Path) -> None:
    """By URL and options; what is in memory does not."""
    store = pickle.loads(pickle.dumps(ObjectStore(tmp_path)))
    assert store.identity == ObjectStore(tmp_path).identity
    with pytest.raises(TypeError, match="another process"):
        pickle.dumps(ObjectStore("memory:///"))
    with pytest.raises(TypeError, match="another process"):
        pickle.dumps(ObjectStore(MemoryStore()))
    fs = pickle.loads(pickle.dumps(FsspecStore(fsspec.filesystem("file"), "/data")))
    assert fs.identity == FsspecStore("file:///data").identity


def test_identities_tell_stores_apart(tmp_path: Path) -> None:
    """By scheme, endpoint, bucket and prefix; the same in every process."""
    urls = ["s3://a/p", "s3://a/q", "s3://b/p", "gs://a/p", "http://a/p", "https://a/p"]
    identities = [ObjectStore(url).identity for url in urls]
    identities.append(ObjectStore("s3://a/p", options={"endpoint": "http://else"}).identity)
    identities += [ObjectStore("memory:///").identity, ObjectStore("memory:///").identity]
    assert len(set(identities)) == len(identities)
    assert identities[:6] == [ObjectStore(url).identity for url in urls]


def test_whatever_a_user_has_is_opened() -> None:
    """URLs, stores of obstore's, file systems, functions, and stores; and nothing else."""

    async def get(key: str) -> bytes:
        return key.encode()

    assert isinstance(open_store("memory:///"), ObjectStore)
    assert isinstance(open_store(MemoryStore()), ObjectStore)
    assert isinstance(open_store(fsspec.filesystem("memory")), FsspecStore)
    store = open_store(get)
    assert isinstance(store, CallableStore)
    assert open_store(store) is store
    with pytest.raises(TypeError, match="neither a URL nor a store"):
        open_store(5)
    with pytest.raises(TypeError, match="options belong to a URL"):
        open_store(get, region="x")


async def test_a_web_server_without_lists_is_not_an_empty_store(web: Served) -> None:
    """obstore itself takes the refusal for an empty list."""
    store = ObjectStore(web.url)
    with pytest.raises(StoreError, match="lists nothing"):
        async for _ in store.list():
            pass
    await store.aclose()


def test_the_contract_is_broken_by_what_cuts_ranges() -> None:
    """A store that gives what it has where more was asked for does not pass."""

    class Cut(TestMemory):
        @contextlib.asynccontextmanager
        async def make_store(self, objects: Mapping[str, bytes]) -> AsyncIterator[Any]:
            async with super().make_store(objects) as store:

                async def cut(key: str, start: int, stop: int, **_: Any) -> memoryview:
                    return (await store.get(key))[0][start:stop]

                yield SimpleNamespace(get_range=cut, get=store.get)

    with pytest.raises(AssertionError, match="ShortRead"):
        Cut().test_a_range_past_the_end_is_an_error()
