"""Stores: every kind of them keeps the same contract."""

from __future__ import annotations

import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import fsspec
import obstore
import pytest
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from obstore.store import MemoryStore
from servers.fixtures import Served, serving

from aioloader.sources import (
    CallableStore,
    FsspecStore,
    open_store,
)
from aioloader.testing import StoreContract

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
