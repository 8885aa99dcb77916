"""Credentials: wherever a user puts them, they are nowhere to be seen."""

from __future__ import annotations

import asyncio
import logging
import pickle
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np
import obstore
import pytest
from obstore.store import S3Store
from servers.fixtures import Served, content
from servers.keys import ACCESS_KEY, SECRET_KEY

from aioloader import DataGroup, FetchError, FetchPolicy, Loader, LoadError
from aioloader.sources import (
    FsspecStore,
    LocalTier,
    ObjectMissing,
    ObjectStore,
    ObjectStoreSource,
    StoreError,
    open_store,
)
from aioloader.sources.errors import ObjectChanged

if TYPE_CHECKING:
    from pathlib import Path

PASSWORD = "the-password-of-a-user"
SIGNATURE = "the-signature-of-a-query"
SECRETS = (ACCESS_KEY, SECRET_KEY, PASSWORD, SIGNATURE, SIGNATURE.encode().hex())
QUICK = FetchPolicy(retries=1, backoff=0, attempt_timeout=5)


def with_credentials(url: str) -> str:
    """Return a URL with a user, a password and a signed query."""
    return (
        url.replace("://", f"://user:{PASSWORD}@")
        + f"/?X-Amz-Signature={SIGNATURE}&sig={SIGNATURE}"
    )


def all_of(error: BaseException) -> str:
    """Return everything that anybody might print of an error."""
    seen: list[str] = []
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop()
        if each is None:
            continue
        seen += [str(each), repr(each), repr(each.args), repr(getattr(each, "__notes__", ""))]
        seen.append(repr({k: v for k, v in vars(each).items() if not k.startswith("_")}))
        todo += [each.__cause__, each.__context__]
    return "\n".join([*seen, *traceback.format_exception(error)])


def assert_clean(*texts: object) -> None:
    for text in texts:
        shown = text.decode("latin-1") if isinstance(text, bytes) else str(text)
        for secret in SECRETS:
            assert secret not in shown


async def test_of_s3_nothing_shows_its_keys(s3: Any, tmp_path: Path, caplog: Any) -> None:
    """Neither repr, identity, errors, logs, index, nor a tier's files."""
    caplog.set_level(logging.DEBUG)
    url = s3.bucket({f"{number}": content(number) for number in range(4)})
    tier = LocalTier(tmp_path / "tier", 1 << 20)
    source = await ObjectStoreSource.listed(url, options=s3.options, policy=QUICK, tier=tier)
    async with source:
        assert bytes(await source[0]) == content(0)
        await source.flush()
        await source.save_index(tmp_path / "index")
        assert_clean(repr(source), source.identity, repr(source.fetch), repr(source.store))
        assert_clean(source.statistics(), tier, repr(source.keys))
        with pytest.raises(FetchError) as caught:
            await source.fetch("none")
        assert isinstance(caught.value.__cause__, ObjectMissing)
        assert_clean(all_of(caught.value), pickle.dumps(caught.value))
    for path in tmp_path.rglob("*"):
        assert_clean(path)
        if path.is_file():
            assert_clean(path.read_bytes())
    assert_clean(caplog.text)
    assert SECRET_KEY.encode() in pickle.dumps(source)  # what was given has to travel


async def test_of_refusals_nothing_repeats_what_was_signed(web: Served) -> None:
    """Whatever the server's answer or the client's error says, of S3 and of the web."""
    for kind in ("429", "500", "503", "reset", "truncate"):
        web.set(faults=1, kinds=kind)
        stores = [
            ObjectStore(with_credentials(web.url)),
            ObjectStore(
                "s3://bucket/o",
                options={
                    "endpoint": web.url.replace("://", f"://user:{PASSWORD}@"),
                    "access_key_id": ACCESS_KEY,
                    "secret_access_key": SECRET_KEY,
                    "session_token": SIGNATURE,
                    "region": "us-east-1",
                },
            ),
        ]
        for store in stores:
            with pytest.raises(StoreError) as caught:
                await store.get("o/001")
            assert_clean(all_of(caught.value), pickle.dumps(caught.value))
            assert_clean(repr(store), store.identity, store.shown)
            await store.aclose()


async def test_of_urls_users_and_queries_are_kept_to_oneself(
    web: Served, tmp_path: Path, caplog: Any
) -> None:
    """They are sent, and not shown: not by a loader's errors and states either."""
    caplog.set_level(logging.DEBUG)
    keys = ["o/000", "o/001", "o/none"]

    def load(payload: memoryview, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = len(payload)

    url = with_credentials(web.url)
    tier = LocalTier(tmp_path, 1 << 20)
    async with ObjectStoreSource(url, keys=keys, policy=QUICK, tier=tier) as source:
        assert bytes(await source[1]) == content(1)
        assert_clean(repr(source), source.identity)
        group = DataGroup(1, range(3), loader_arrays={"x": ((), "int64", "int32")})
        async with Loader(load, group, fetch=source.fetch, num_workers=0) as loader:
            sizes = [int(np.asarray((await anext(loader)).arrays["x"])[0]) for _ in range(2)]
            assert sizes == [len(content(0)), len(content(1))]
            with pytest.raises(LoadError) as caught:
                await anext(loader)
            assert "o/none" in str(caught.value)
            assert_clean(all_of(caught.value), str(loader.get_state()), repr(loader))
    assert_clean(caplog.text, *tmp_path.rglob("*"))


async def test_of_settings_that_are_wrong_no_value_is_repeated() -> None:
    """The name of a setting is enough."""
    for options in (
        {"client_options": {"timeout": SECRET_KEY}},
        {"endpoint": f"not a url {SECRET_KEY}"},
        {"no_such_setting": SECRET_KEY},
    ):
        store = ObjectStore("s3://bucket", options=options)
        with pytest.raises(StoreError) as caught:
            await store.get("a")
        assert_clean(all_of(caught.value))


def test_of_other_stores_the_identity_is_clean() -> None:
    """Of those that a user has opened, and of file systems."""
    client = S3Store("bucket", access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY)
    store = open_store(client)
    assert_clean(repr(store), store.identity)
    url = f"https://user:{PASSWORD}@host/data"
    fs = FsspecStore("memory://data", options={"password": PASSWORD, "endpoint_url": url})
    assert_clean(repr(fs), fs.identity)
    assert "host" in fs.identity
    http = open_store(obstore.store.HTTPStore(with_credentials("https://host/data")))
    assert_clean(repr(http), http.identity)


def test_errors_keep_no_credentials_of_what_they_are_told() -> None:
    """Whoever makes them."""
    url = with_credentials("https://host/data")
    for kind in (StoreError, ObjectMissing, ObjectChanged):
        error = kind(f"{url} cannot be had: Authorization: Bearer {PASSWORD}")
        assert_clean(all_of(error), pickle.dumps(error))
    assert "host/data" in str(StoreError(url))


async def test_of_functions_the_clients_errors_are_cleaned() -> None:
    """They are no cause where they have to be."""

    async def get(key: str) -> bytes:
        raise ConnectionResetError(f"GET {with_credentials('https://host')}")

    source = ObjectStoreSource(get, keys=["a"], policy=QUICK)
    with pytest.raises(FetchError, match="2 attempts") as caught:
        await source[0]
    assert_clean(all_of(caught.value))
    await asyncio.sleep(0)
