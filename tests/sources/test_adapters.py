"""Adapters: file systems and functions of the user's, under the same policy and checks."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import aiohttp
import anyio
import fsspec
import numpy as np
import pytest
from fsspec.asyn import AsyncFileSystem
from servers.fixtures import Served, content
from support import until

from aioloader import DataGroup, FetchError, FetchPolicy, Loader
from aioloader.sources import (
    CallableStore,
    FsspecStore,
    ObjectInfo,
    ObjectMissing,
    ObjectStoreSource,
    ShortRead,
    StoreError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KEYS = [f"o/{number:03}" for number in range(24)]


def load(payload: memoryview, arrays: Any, seed: int | None) -> None:
    arrays["x"][...] = int.from_bytes(payload[:8], "big")


async def numbers(source: ObjectStoreSource) -> list[int]:
    group = DataGroup(8, range(len(source)), loader_arrays={"x": ((), "int64", "int32")})
    async with Loader(
        load, group, fetch=source.fetch, num_workers=0, end_at=("epoch", 1)
    ) as loader:
        return [int(n) async for batch in loader for n in np.asarray(batch.arrays["x"])]


async def test_aiohttp_brings_objects_of_a_bad_server(web: Served) -> None:
    """Its errors are judged as obstore's are, and its own retries are not there."""
    web.set(faults=0.3, kinds="reset,truncate,429,500,503", seed=5)
    policy = FetchPolicy(concurrency=16, retries=20, backoff=0.001)
    async with aiohttp.ClientSession() as session:

        async def get(key: str) -> bytes:
            async with session.get(f"{web.url}/{key}") as answer:
                answer.raise_for_status()
                return await answer.read()

        source = ObjectStoreSource(get, keys=KEYS, policy=policy)
        assert sorted(await numbers(source)) == list(range(24))
        assert source.statistics().retries > 0
        web.set(faults=0)
        source = ObjectStoreSource(get, keys=["o/none"], policy=policy)
        with pytest.raises(FetchError, match="1 attempt") as caught:
            await source[0]
        assert isinstance(caught.value.__cause__, ObjectMissing)
        assert caught.value.__cause__.status == 404


async def test_a_file_system_brings_objects(tmp_path: Path) -> None:
    """By URL, listed, in threads; with a pattern and an index as any store."""
    for number in range(8):
        (tmp_path / f"{number}.bin").write_bytes(content(number))
    (tmp_path / "other.txt").write_bytes(b"")
    store = FsspecStore(f"file://{tmp_path}")
    source = await ObjectStoreSource.listed(store, pattern="*.bin")
    assert list(source.keys) == [f"{number}.bin" for number in range(8)]
    assert source.sizes is not None
    assert sorted(await numbers(source)) == list(range(8))


async def test_a_file_system_is_called_in_threads_at_once_and_left_at_once() -> None:
    """A call that hangs keeps neither the loop nor who was cancelled."""
    begun, gate = [], threading.Event()

    class Slow(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "slow"

        def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
            begun.append(threading.get_ident())
            if not gate.wait(10):
                raise AssertionError("those who were cancelled waited for it")
            return b"x"

    store = FsspecStore(Slow())
    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(store.get, "a")
        await until(lambda: len(set(begun)) == 8)
        group.cancel_scope.cancel()
    gate.set()
    assert (await store.get("a"))[0] == b"x"


async def test_an_asynchronous_file_system_is_awaited_on_the_loop() -> None:
    """It is told so by `asynchronous=True`; its threads would have another loop."""
    here = threading.get_ident()

    class Awaited(AsyncFileSystem):  # type: ignore[misc]
        protocol = "awaited"

        async def _cat_file(self, path: str, start: Any = None, end: Any = None) -> bytes:
            assert threading.get_ident() == here
            return path.encode()[start:end]

    store = FsspecStore(Awaited(asynchronous=True), "root")
    assert (await store.get("a"))[0] == b"root/a"
    assert await store.get_range("a", 1, 3) == b"oo"


async def test_parts_of_objects_are_asked_for_where_that_is_possible() -> None:
    """Else whole ones are, and cut; a range that comes short is an error in both cases."""
    asked: list[Any] = []

    async def get(key: str) -> bytes:
        asked.append(key)
        return b"0123456789"

    async def get_range(key: str, start: int, stop: int) -> bytearray:
        asked.append((key, start, stop))
        return bytearray(b"0123456789"[start:stop])

    for store, expected in (
        (CallableStore(get), "a"),
        (CallableStore(get, get_range), ("a", 2, 4)),
    ):
        part = await store.get_range("a", 2, 4)
        assert part == b"23"
        assert part.readonly
        assert asked == [expected]
        with pytest.raises(ShortRead):
            await store.get_range("a", 8, 12)
        asked.clear()


async def test_functions_list_as_they_like() -> None:
    """Keys or what is known of them, from a coroutine, a generator of either kind, or a list."""

    async def get(key: str) -> bytes:
        return b"12"

    async def awaited(prefix: str) -> list[str]:
        return [f"{prefix}a", f"{prefix}b"]

    async def yielded(prefix: str) -> AsyncIterator[ObjectInfo]:
        for name in ("a", "b"):
            yield ObjectInfo(prefix + name, 2)

    for function in (awaited, yielded, lambda prefix: iter([f"{prefix}a", f"{prefix}b"])):
        source = await ObjectStoreSource.listed(CallableStore(get, list=function), "p/")
        assert list(source.keys) == ["p/a", "p/b"]
        assert await source[1] == b"12"
    with pytest.raises(StoreError, match="has no list"):
        await ObjectStoreSource.listed(get)


async def test_etags_of_functions_are_checked_by_their_head() -> None:
    """Where there is one."""

    async def get(key: str) -> bytes:
        return b"12"

    async def head(key: str) -> ObjectInfo:
        return ObjectInfo(key, 2, etag)

    etag = '"1"'
    store = CallableStore(get, head=head, list=lambda _: [ObjectInfo("a", 2, '"1"')])
    source = await ObjectStoreSource.listed(store)
    assert await source[0] == b"12"
    etag = '"2"'
    with pytest.raises(FetchError, match="ETag"):
        await source[0]


async def test_mistakes_in_functions_are_shown_with_their_traceback() -> None:
    """They are tried once; what may hold credentials is not a cause."""

    async def get(key: str) -> bytes:
        if key == "url":
            raise ValueError("of https://me:password@host/")
        return key.nonsense  # type: ignore[attr-defined, no-any-return]

    store = CallableStore(get)
    with pytest.raises(StoreError, match=r"AttributeError.*nonsense") as caught:
        await store.get("a")
    assert isinstance(caught.value.__cause__, AttributeError)
    with pytest.raises(StoreError, match="ValueError") as caught:
        await store.get("url")
    assert "password" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_wrong_functions_are_refused_at_once() -> None:
    """The message names the argument."""

    async def get(key: str) -> bytes:
        return b""

    with pytest.raises(TypeError, match="get=5"):
        CallableStore(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="head=5"):
        CallableStore(get, head=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="options belong to a URL"):
        FsspecStore(fsspec.filesystem("memory"), options={"key": "x"})
