"""The contract of stores, as tests to subclass."""

from __future__ import annotations

import asyncio
import contextlib  # noqa: TC003
import pickle
from typing import TYPE_CHECKING, Any

from aioloader.sources.errors import ObjectChanged, ObjectMissing, ShortRead, StoreError
from aioloader.sources.seam import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["StoreContract"]

_OBJECTS = {
    "empty": b"",
    "one/a": b"0123456789",
    "one/b": bytes(range(256)) * 300,
    "one/deeper/c c": b"spaces",
    "oneself": b"beside a folder of nearly that name",
    "ünï/ö": b"beyond ASCII",
}


class StoreContract:
    """What sources rely on in a store. Subclass it, and override `make_store`.

    ::

        class TestMyStore(StoreContract):
            @contextlib.asynccontextmanager
            async def make_store(self, objects):
                async with my_server(objects) as url:
                    yield MyStore(url)
    """

    lists = True
    """Whether the store can list its objects."""

    has_etags = True
    """Whether it knows their ETags, and checks them."""

    def make_store(
        self, objects: Mapping[str, bytes]
    ) -> contextlib.AbstractAsyncContextManager[Store]:
        """Return a context manager of a store that has just these objects."""
        raise AssertionError("override make_store")

    def test_it_is_a_store(self) -> None:
        """Its identity is text that stays, and it can be shown."""

        async def check(store: Store) -> None:
            assert isinstance(store, Store)
            assert isinstance(store.identity, str)
            assert store.identity == store.identity
            assert repr(store)

        self._run(check)

    def test_whole_objects_are_read_only_views_of_their_bytes(self) -> None:
        """Every object comes whole, and so do many at once."""

        async def check(store: Store) -> None:
            keys = list(_OBJECTS) * 8
            for key, (payload, info) in zip(
                keys, await asyncio.gather(*map(store.get, keys)), strict=True
            ):
                assert payload == _OBJECTS[key]
                assert payload.readonly
                assert (info.key, info.size) == (key, len(_OBJECTS[key]))

        self._run(check)

    def test_ranges_are_exact(self) -> None:
        """The bytes asked for come and no others; no bytes cost no request."""

        async def check(store: Store) -> None:
            for start, stop in ((0, 10), (3, 4), (2, 9), (5, 5)):
                payload = await store.get_range("one/a", start, stop)
                assert payload == b"0123456789"[start:stop]
                assert payload.readonly
            large = await store.get_range("one/b", 1000, 70000)
            assert large == _OBJECTS["one/b"][1000:70000]
            await _raises(ValueError, store.get_range("one/a", 5, 4))
            await _raises(ValueError, store.get_range("one/a", -5, 4))

        self._run(check)

    def test_a_range_past_the_end_is_an_error(self) -> None:
        """Fewer bytes than were asked for are never data."""

        async def check(store: Store) -> None:
            for start, stop in ((5, 11), (10, 11), (100, 200)):
                await _raises(ShortRead, store.get_range("one/a", start, stop))

        self._run(check)

    def test_what_is_missing_is_said_to_be(self) -> None:
        """It is a `FileNotFoundError`, names the key, and is not worth another try."""

        async def check(store: Store) -> None:
            for request in (store.get, lambda key: store.get_range(key, 0, 4)):
                error = await _raises(ObjectMissing, request("no/such"))
                assert "no/such" in str(error)
                assert not error.passes
            await _raises(ObjectMissing, store.head("no/such"))

        self._run(check)

    def test_heads_tell_sizes(self) -> None:
        """As objects themselves do, and with the same ETag."""

        async def check(store: Store) -> None:
            for key, content in _OBJECTS.items():
                info = await store.head(key)
                assert (info.key, info.size) == (key, len(content))

        self._run(check)

    def test_another_etag_is_another_object(self) -> None:
        """An ETag that an object has is accepted, and any other refused."""

        async def check(store: Store) -> None:
            if not self.has_etags:
                return
            etag = (await store.head("one/a")).etag
            assert etag is not None
            assert (await store.get("one/a", etag=etag))[0] == _OBJECTS["one/a"]
            assert bytes(await store.get_range("one/a", 2, 5, etag=etag)) == b"234"
            error = await _raises(ObjectChanged, store.get("one/a", etag='"another"'))
            assert not error.passes
            await _raises(ObjectChanged, store.get_range("one/a", 2, 5, etag='"another"'))

        self._run(check)

    def test_lists_have_every_object_once(self) -> None:
        """A prefix is the beginning of keys, whether or not it ends with a folder."""

        async def check(store: Store) -> None:
            if not self.lists:
                await _raises(StoreError, _listed(store, ""))
                return
            for prefix in ("", "one", "one/", "one/d", "ü", "nothing/here"):
                listed = await _listed(store, prefix)
                wanted = {k: len(v) for k, v in _OBJECTS.items() if k.startswith(prefix)}
                assert dict(listed) == wanted
                assert len(listed) == len(wanted)

        self._run(check)

    def test_a_cancelled_request_leaves_the_store_as_it_was(self) -> None:
        """Others are answered."""

        async def check(store: Store) -> None:
            tasks = [asyncio.ensure_future(store.get("one/b")) for _ in range(64)]
            await asyncio.sleep(0)
            for task in tasks[1:]:
                task.cancel()
            await asyncio.gather(*tasks[1:], return_exceptions=True)
            assert (await tasks[0])[0] == _OBJECTS["one/b"]
            assert (await store.get("one/a"))[0] == _OBJECTS["one/a"]

        self._run(check)

    def test_errors_travel(self) -> None:
        """A pickled error is the same error."""

        async def check(store: Store) -> None:
            error = await _raises(ObjectMissing, store.get("no/such"))
            copy = pickle.loads(pickle.dumps(error))
            assert (type(copy), str(copy), copy.passes, copy.status) == (
                type(error),
                str(error),
                error.passes,
                error.status,
            )

        self._run(check)

    def _run(self, check: Any) -> None:
        async def main() -> None:
            async with self.make_store(_OBJECTS) as store:
                await check(store)

        asyncio.run(main())


async def _raises(kind: type[Exception], request: Any) -> Any:
    try:
        await request
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


async def _listed(store: Store, prefix: str) -> list[tuple[str, int]]:
    return [(info.key, info.size) async for page in store.list(prefix) for info in page]
