"""The object store: S3, GCS, Azure, HTTP, local disk or memory behind a URL, by obstore."""

from __future__ import annotations

import importlib
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, final
from urllib.parse import urlsplit

import anyio

from aioloader.sources.errors import StoreError
from aioloader.sources.pieces import (
    as_payload,
    checked_range,
    require_etag,
    require_length,
    without_credentials,
)
from aioloader.sources.seam import ObjectInfo
from aioloader.sources.translating import secrets_of, translated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

__all__ = ["ObjectStore", "wake_runtime"]

_PAGE = 500
_NO_LIMIT_SECONDS = 24 * 60 * 60.0
_LISTING_TRIES = 5
_LISTING_SECONDS = 30.0
_SETTLING = (0.002, 0.008)  # seconds after which connections are ready to be closed
_OWN_CLIENTS = ("file", "memory")  # which have no connections, and nothing to set of them
_NOT_CONFIGURATION = ("client_options", "retry_config", "credential_provider")
_TELLING = ("endpoint", "account_name", "container_name", "bucket")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


@final
class ObjectStore:
    """A store that obstore speaks to; keys are relative to its URL.

    Clients are made when they are first needed, and again after `close`. Those that fetch
    neither retry nor hurry by themselves, as the policy of a source does that; listings, of
    which only obstore knows the pages, it tries again itself.

    Args:
        url: ``s3://bucket/prefix/``, ``gs://…``, ``az://…``, ``http(s)://…``, ``file:///…``,
            ``memory:///``, a path, or a store of obstore's own, which is used as it is.
        options: Passed on to ``obstore.store.from_url``. They may hold credentials, and are
            shown nowhere; but whoever pickles the store pickles them, too.
        timeout: Seconds after which its own client gives up a request; None a day.
    """

    def __init__(
        self,
        url: Any,
        *,
        options: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> None:
        given = isinstance(url, str | os.PathLike)
        if not given and options:
            raise TypeError("options belong to a URL: this store has been opened already")
        self._url = _as_url(url) if given else ""
        self._given = None if given else url
        self._options = dict(options or {})
        self._timeout = timeout
        self._client: Any = self._given
        self._lister: Any = self._given
        self._token = uuid.uuid4().hex  # of a store in memory, which is this one and no other
        self._identity: str | None = None

    def __repr__(self) -> str:
        return f"<ObjectStore {self.shown}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._url.startswith("memory:") or type(self._given).__name__ == "MemoryStore":
            raise TypeError("a store in memory is not to be had in another process")
        url = self._url if self._given is None else self._given
        return _rebuild, (url, self._options, self._timeout)

    @property
    def shown(self) -> str:
        """Its URL as messages show it."""
        return without_credentials(self._url) if self._url else _described(self._given)

    @property
    def identity(self) -> str:
        """What tells it from others: scheme, endpoint, bucket and prefix."""
        if self._identity is None:
            self._identity = self._identify()
        return self._identity

    async def get(self, key: str, *, etag: str | None = None) -> tuple[memoryview, ObjectInfo]:
        """Return a whole object."""
        client = self._open()
        answer = await self._ask(key, _obstore().get_async, client, key, options=_matching(etag))
        meta = answer.meta
        require_etag(key, meta["e_tag"], etag)
        payload = as_payload(await self._ask(key, answer.bytes_async))
        require_length(key, payload.nbytes, meta["size"])
        return payload, ObjectInfo(key, payload.nbytes, meta["e_tag"])

    async def get_range(
        self, key: str, start: int, stop: int, *, etag: str | None = None
    ) -> memoryview:
        """Return a range of an object."""
        length = checked_range(start, stop)
        if length == 0:
            return as_payload(b"")
        client, obstore = self._open(), _obstore()
        if etag is None:
            ask = obstore.get_range_async
            payload = as_payload(await self._ask(key, ask, client, key, start=start, end=stop))
        else:
            options = {**_matching(etag), "range": (start, stop)}
            answer = await self._ask(key, obstore.get_async, client, key, options=options)
            require_etag(key, answer.meta["e_tag"], etag)
            payload = as_payload(await self._ask(key, answer.bytes_async))
        require_length(key, payload.nbytes, length)
        return payload

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object."""
        meta = await self._ask(key, _obstore().head_async, self._open(), key)
        return ObjectInfo(key, meta["size"], meta["e_tag"])

    async def list(self, prefix: str = "") -> AsyncIterator[Sequence[ObjectInfo]]:
        """Yield objects in pages; those of a local disk are in no order."""
        folder = prefix.rpartition("/")[0]  # obstore's own prefixes are whole folders
        lister = self._open(for_lists=True)
        stream = _obstore().list(lister, folder or None, chunk_size=_PAGE)
        is_empty = True
        what = f"the list of {prefix!r}"
        while page := await self._ask(what, anext, stream, None):
            found = [
                ObjectInfo(meta["path"], meta["size"], meta["e_tag"])
                for meta in page
                if meta["path"].startswith(prefix)
            ]
            if found:
                yield found
            is_empty = False
        if is_empty and self._kind() == "HTTPStore":
            raise StoreError(  # obstore takes a refusal for an empty list
                f"{self.shown} lists nothing, as a web server does that does not speak WebDAV: "
                "give keys, or an index"
            )

    def close(self) -> None:
        """Let go of the clients; their connections close some time after nothing is in flight."""
        self._client = self._lister = self._given

    async def aclose(self) -> None:
        """Do the same, and have connections closed at once."""
        had_client = self._client is not self._given or self._lister is not self._given
        self.close()
        if had_client:
            for seconds in _SETTLING:
                await anyio.sleep(seconds)
                wake_runtime()

    async def _ask(self, key: str, function: Any, /, *args: Any, **options: Any) -> Any:
        """Await a function of obstore's, and translate its errors.

        They are raised after they have been left behind: else the original ones, which may
        hold credentials, would be their context.
        """
        try:
            return await function(*args, **options)
        except Exception as error:
            failure = translated(error, key, self._secrets())
        try:
            raise failure
        finally:
            del failure  # it and this frame would keep each other, and the client

    def _open(self, *, for_lists: bool = False) -> Any:
        client = self._lister if for_lists else self._client
        if client is not None:
            return client
        try:
            client = _obstore().store.from_url(self._url, **self._settings(for_lists))
        except Exception as error:
            failure = translated(error, f"{self.shown} cannot be opened", self._secrets())
        else:
            if urlsplit(self._url).scheme in _OWN_CLIENTS:
                self._client = self._lister = client
            elif for_lists:
                self._lister = client
            else:
                self._client = client
            return client
        try:
            raise failure
        finally:
            del failure  # it and this frame would keep each other, and the client

    def _settings(self, for_lists: bool) -> dict[str, Any]:
        if urlsplit(self._url).scheme in _OWN_CLIENTS:
            return self._options
        seconds = _NO_LIMIT_SECONDS if self._timeout is None else self._timeout
        if for_lists:
            seconds = min(seconds, _LISTING_SECONDS)
        limit = f"{max(int(seconds * 1000), 1)}ms"
        client_options: dict[str, Any] = {"timeout": limit, "connect_timeout": limit}
        if any(text.startswith("http://") for text in (self._url, *secrets_of(self._options))):
            client_options["allow_http"] = True
        client_options |= self._options.get("client_options") or {}
        retries = {"max_retries": _LISTING_TRIES if for_lists else 0}
        settings = {"retry_config": retries, **self._options}
        return {**settings, "client_options": client_options}

    def _secrets(self) -> Sequence[str]:
        return [*secrets_of(self._options), *_secrets_of_url(self._url)]

    def _identify(self) -> str:
        if urlsplit(self._url).scheme in ("http", "https") and self._kind() == "HTTPStore":
            return without_credentials(self._url)
        client = self._open()
        kind, prefix = self._kind(), getattr(client, "prefix", None)
        if kind == "MemoryStore":
            return f"memory:{self._token}"
        if kind == "LocalStore":
            return f"file://{prefix or '/'}"
        if kind == "HTTPStore":
            return without_credentials(client.url)
        config = dict(client.config)
        if kind == "S3Store" and "endpoint" not in config:
            config["endpoint"] = next((os.environ[n] for n in _ENDPOINTS if n in os.environ), "")
        told = {name: without_credentials(str(config.get(name) or "")) for name in _TELLING}
        parts = [f"{name}={value}" for name, value in told.items() if value]
        return f"{kind}({', '.join([*parts, f'prefix={prefix or str()}'])})"

    def _kind(self) -> str:
        return type(self._open()).__name__


def wake_runtime() -> None:
    """Have obstore's threads run; a process keeps them once started, with a few descriptors.

    While they sleep, what has been let go of may stay: a connection, above all.
    """
    try:
        obstore = _obstore()
    except ImportError:
        return
    obstore.put(obstore.store.MemoryStore(), "a", b"")


def _obstore() -> Any:
    try:
        return importlib.import_module("obstore")
    except ImportError as error:
        raise ImportError(
            "object stores are read with obstore: pip install 'aioloader[remote]'"
        ) from error


def _as_url(url: str | os.PathLike[str]) -> str:
    text = os.fspath(url)
    return text if "://" in text else Path(text).absolute().as_uri()


def _matching(etag: str | None) -> dict[str, Any]:
    # No weak tag ever matches in a request: those are compared when the answer is there.
    return {} if etag is None or etag.startswith("W/") else {"if_match": etag}


def _described(client: Any) -> str:
    kind = type(client).__name__
    prefix = getattr(client, "prefix", None)
    url = getattr(client, "url", None)
    if isinstance(url, str):
        return without_credentials(url)
    bucket = dict(getattr(client, "config", None) or {}).get("bucket", "")
    return "/".join(str(part) for part in (f"{kind}:", bucket, prefix) if part)


def _secrets_of_url(url: str) -> list[str]:
    parts = urlsplit(url)
    secrets = [parts.username, parts.password, parts.query]
    return [secret for secret in secrets if secret and len(secret) > 1]


def _rebuild(url: Any, options: dict[str, Any], timeout: float | None) -> ObjectStore:
    return ObjectStore(url, options=options, timeout=timeout)
