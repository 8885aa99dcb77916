"""Adapters: file systems of fsspec, and coroutine functions of the user's, as stores."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from typing import TYPE_CHECKING, Any, TypeVar, final
from weakref import WeakKeyDictionary

import anyio

from aioloader._fetching.judging import judge
from aioloader._fetching.redacting import redact
from aioloader.sources.errors import ObjectMissing, StoreError
from aioloader.sources.pieces import (
    as_payload,
    checked_range,
    require_etag,
    require_length,
    without_credentials,
)
from aioloader.sources.seam import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

__all__ = ["CallableStore", "FsspecStore"]

T = TypeVar("T")

_PAGE = 1000
_THREADS = 64
_GONE = (404, 410)


@final
class FsspecStore:
    """Objects of a file system of fsspec's.

    One that was made with ``asynchronous=True`` is awaited on the event loop; others are called
    in threads, up to 64 at once. It is told an object's ETag only by asking for it apart: that
    costs a second request, where an ETag is to be checked.

    Args:
        filesystem: A ``fsspec`` file system, or a URL that fsspec opens one for.
        root: The folder below which keys lie; with a URL, one below that.
        options: Passed on to fsspec with a URL. They are shown nowhere.
    """

    def __init__(
        self, filesystem: Any, root: str = "", *, options: Mapping[str, Any] | None = None
    ) -> None:
        if isinstance(filesystem, str):
            filesystem, path = _opened(filesystem, dict(options or {}))
            root = "/".join(part for part in (path.rstrip("/"), root.strip("/")) if part)
        elif options:
            raise TypeError("options belong to a URL: this file system has been opened already")
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self._awaits = bool(filesystem.async_impl and filesystem.asynchronous)
        self._limiters: WeakKeyDictionary[Any, anyio.CapacityLimiter] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<FsspecStore {self.identity}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return FsspecStore, (self._filesystem, self._root)

    @property
    def identity(self) -> str:
        """What tells it from others: the protocol, the host where there is one, the folder."""
        protocol = self._filesystem.protocol
        protocol = protocol if isinstance(protocol, str) else protocol[0]
        # Its options name the host under many names, and hold credentials under others.
        options = getattr(self._filesystem, "storage_options", {})
        options = {**(options.get("client_kwargs") or {}), **options}
        told = [options.get(name) for name in ("host", "endpoint_url", "account_name")]
        host = ",".join(without_credentials(str(value)) for value in told if value)
        root = without_credentials(self._root) if "://" in self._root else self._root
        return f"fsspec:{protocol}({host}):{root}"

    async def get(self, key: str, *, etag: str | None = None) -> tuple[memoryview, ObjectInfo]:
        """Return a whole object."""
        if etag is not None:
            require_etag(key, (await self.head(key)).etag, etag)
        payload = as_payload(await self._call("cat_file", key))
        return payload, ObjectInfo(key, payload.nbytes, etag)

    async def get_range(
        self, key: str, start: int, stop: int, *, etag: str | None = None
    ) -> memoryview:
        """Return a range of an object."""
        length = checked_range(start, stop)
        if length == 0:
            return as_payload(b"")
        if etag is not None:
            require_etag(key, (await self.head(key)).etag, etag)
        payload = as_payload(await self._call("cat_file", key, start=start, end=stop))
        require_length(key, payload.nbytes, length)
        return payload

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object."""
        info = await self._call("info", key)
        if info["type"] != "file":
            raise ObjectMissing(f"{key} is a {info['type']}")
        return _info(key, info)

    async def list(self, prefix: str = "") -> AsyncIterator[Sequence[ObjectInfo]]:
        """Yield objects in pages, after all of them have been asked for."""
        folder = prefix.rpartition("/")[0]
        found: dict[str, Any] = await self._call("find", folder, detail=True)
        start = len(self._root.lstrip("/")) + 1 if self._root.strip("/") else 0
        infos = ((path.lstrip("/")[start:], info) for path, info in sorted(found.items()))
        wanted = [_info(key, info) for key, info in infos if key.startswith(prefix)]
        for first in range(0, len(wanted), _PAGE):
            yield wanted[first : first + _PAGE]

    async def _call(self, name: str, key: str, **options: Any) -> Any:
        path = "/".join(part for part in (self._root, key) if part)
        try:
            if self._awaits:
                return await getattr(self._filesystem, f"_{name}")(path, **options)
            call = getattr(self._filesystem, name)
            return await anyio.to_thread.run_sync(
                lambda: call(path, **options), abandon_on_cancel=True, limiter=self._limiter()
            )
        except Exception as error:
            failure = _failure(error, key)
        try:
            raise failure
        finally:
            del failure  # it and this frame would keep each other

    def _limiter(self) -> anyio.CapacityLimiter:
        loop = asyncio.get_running_loop()
        limiter = self._limiters.get(loop)
        if limiter is None:
            limiter = self._limiters[loop] = anyio.CapacityLimiter(_THREADS)
        return limiter


@final
class CallableStore:
    """Objects that a coroutine function brings, by whatever client::

        async def download(key):
            async with session.get(f"https://host/{key}") as answer:
                answer.raise_for_status()
                return await answer.read()

        source = ObjectStoreSource(CallableStore(download, identity="https://host"), keys=keys)

    Its client must not retry by itself, or what is retried is retried twice. Errors are judged
    by the HTTP status that they carry, or by their kind; a ``KeyError``, a
    ``FileNotFoundError``, and the statuses 404 and 410 say that there is no such object.

    Args:
        get: ``await get(key)`` returns an object's bytes, or whatever has a buffer.
        get_range: ``await get_range(key, start, stop)`` returns a part of them. Without it the
            whole object is fetched for a part of it.
        head: ``await head(key)`` returns an `ObjectInfo`. Without it the object is fetched.
        list: ``list(prefix)`` yields keys or `ObjectInfo`s, with or without ``async``.
        identity: Tells this store from others; without credentials.
    """

    def __init__(
        self,
        get: Callable[[str], Awaitable[Any]],
        get_range: Callable[[str, int, int], Awaitable[Any]] | None = None,
        head: Callable[[str], Awaitable[ObjectInfo]] | None = None,
        list: Callable[[str], Any] | None = None,
        *,
        identity: str | None = None,
    ) -> None:
        for name, function in (("get", get), ("get_range", get_range), ("head", head)):
            if function is not None and not callable(function):
                raise TypeError(f"{name}={function!r} must be a coroutine function")
        self._get = get
        self._get_range = get_range
        self._head = head
        self._list = list
        named = f"{getattr(get, '__module__', '')}.{getattr(get, '__qualname__', '')}"
        self._identity = f"function {named}" if identity is None else identity

    def __repr__(self) -> str:
        return f"<CallableStore {self._identity}>"

    @property
    def identity(self) -> str:
        """What tells it from others, as it was given."""
        return self._identity

    async def get(self, key: str, *, etag: str | None = None) -> tuple[memoryview, ObjectInfo]:
        """Return a whole object; its ETag is asked for apart, where ``head`` was given."""
        if etag is not None and self._head is not None:
            require_etag(key, (await self.head(key)).etag, etag)
        payload = as_payload(await _awaited(key, self._get, key))
        return payload, ObjectInfo(key, payload.nbytes, etag)

    async def get_range(
        self, key: str, start: int, stop: int, *, etag: str | None = None
    ) -> memoryview:
        """Return a range of an object."""
        length = checked_range(start, stop)
        if length == 0:
            return as_payload(b"")
        if self._get_range is None:
            payload = (await self.get(key, etag=etag))[0][start:stop]
        else:
            if etag is not None and self._head is not None:
                require_etag(key, (await self.head(key)).etag, etag)
            payload = as_payload(await _awaited(key, self._get_range, key, start, stop))
        require_length(key, payload.nbytes, length, passes=self._get_range is not None)
        return payload

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object."""
        if self._head is None:
            return (await self.get(key))[1]
        return await _awaited(key, self._head, key)

    async def list(self, prefix: str = "") -> AsyncIterator[Sequence[ObjectInfo]]:
        """Yield objects in pages."""
        if self._list is None:
            raise StoreError(f"{self!r} has no list: give keys, or a function `list(prefix)`")
        page: list[ObjectInfo] = []
        async for found in _each(self._list(prefix)):
            page.append(ObjectInfo(found, -1) if isinstance(found, str) else found)
            if len(page) == _PAGE:
                yield page
                page = []
        if page:
            yield page


async def _awaited(key: str, function: Callable[..., Awaitable[T]], *args: Any) -> T:
    try:
        return await function(*args)
    except Exception as error:
        failure = _failure(error, key)
    try:
        raise failure
    finally:
        del failure


async def _each(found: Any) -> AsyncIterator[Any]:
    if inspect.isawaitable(found):
        found = await found
    if hasattr(found, "__aiter__"):
        async for each in found:
            yield each
    else:
        for each in found:
            yield each


def _failure(error: Exception, key: str) -> Exception:
    """Return what a store raises in place of a client's error, which is its cause if it may be."""
    if isinstance(error, StoreError):
        return error
    failure = _translated(error, key)
    if redact(str(error)) == str(error):
        failure.__cause__ = error
    return failure


def _translated(error: Exception, key: str) -> StoreError:
    judgement = judge(error)
    status = getattr(error, "status", None)
    status = status if isinstance(status, int) else None
    text = f"{key}: {type(error).__name__}: {error}"
    if isinstance(error, FileNotFoundError | IsADirectoryError | KeyError) or status in _GONE:
        return ObjectMissing(f"{key} is missing", status=status)
    after = judgement.retry_after or None
    return StoreError(text, passes=judgement.passes, status=status, retry_after=after)


def _info(key: str, info: Mapping[str, Any]) -> ObjectInfo:
    etag = info.get("ETag") or info.get("etag") or info.get("md5Hash")
    size = info.get("size")
    return ObjectInfo(key, -1 if size is None else int(size), None if etag is None else str(etag))


def _opened(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    try:
        core = importlib.import_module("fsspec.core")
    except ImportError as error:
        raise ImportError(
            "fsspec's file systems need fsspec: pip install 'aioloader[remote]'"
        ) from error
    filesystem, path = core.url_to_fs(url, **options)
    return filesystem, path
