"""Ranges: what sources of a format ask a store for, under one policy and one account."""

from __future__ import annotations

import asyncio
import dataclasses
import operator
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, final
from weakref import WeakKeyDictionary

import anyio

from aioloader._fetching.fetch import Fetch
from aioloader._fetching.policy import FetchPolicy
from aioloader.sources.coalescing import COALESCE_GAP, COALESCE_MOST, Gatherer
from aioloader.sources.errors import ObjectChanged
from aioloader.sources.object_store import ObjectStore
from aioloader.sources.pieces import require_etag, require_length
from aioloader.sources.store import open_store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from aioloader._fetching.statistics import FetchStatistics
    from aioloader.sources.coalescing import Span
    from aioloader.sources.seam import ObjectInfo, Store

__all__ = ["Once", "Ranges", "element_fetch", "in_order", "row_number", "with_elements"]

T = TypeVar("T")
R = TypeVar("R")

_LEAST_ELEMENTS = 1024

_Request = tuple[Literal["range", "head", "list"], Any, int, int]


@final
class Ranges:
    """Requests for ranges and listings of one store, each under a `FetchPolicy`.

    Ranges that are asked for in one turn of the loop share requests, see `Gatherer`. A value:
    pickled, it makes its requests anew where it is unpickled.
    """

    def __init__(
        self,
        store: Any,
        policy: FetchPolicy | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        gap: int = COALESCE_GAP,
        most: int = COALESCE_MOST,
    ) -> None:
        self.store: Store = open_store(store, **(options or {}))
        self.owns_store = self.store is not store
        self._fetch: Fetch[_Request, Any] = Fetch(self._ask, policy, name=_described)
        self._gatherer = Gatherer(self._part, gap=gap, most=most)

    @property
    def policy(self) -> FetchPolicy:
        """The policy of each request."""
        return self._fetch.policy

    def __reduce__(self) -> tuple[Any, ...]:
        gap, most = self._gatherer.gap, self._gatherer.most
        return _rebuild, (self.store, self.owns_store, self.policy, gap, most)

    async def read(self, info: ObjectInfo, spans: Sequence[Span]) -> list[memoryview]:
        """Return the bytes of ranges, together with what others ask for in the same moment."""
        return await self._gatherer.read(info, spans)

    async def read_alone(self, info: ObjectInfo, start: int, stop: int) -> memoryview:
        """Return the bytes of one range by a request of its own."""
        return await self._part((info, start, stop))

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object."""
        info: ObjectInfo = await self._fetch(("head", key, 0, 0))
        return info

    async def require_unchanged(self, info: ObjectInfo) -> None:
        """Raise ObjectChanged where an object is not what ``info`` says."""
        now = await self.head(info.key)
        if now.size != info.size:
            raise ObjectChanged(f"{info.key} has {now.size} bytes, and had {info.size}")
        require_etag(info.key, now.etag, info.etag)

    async def list(self, prefix: str) -> Sequence[ObjectInfo]:
        """Return the objects whose keys begin with ``prefix``, by their keys."""
        found: list[ObjectInfo] = await self._fetch(("list", prefix, 0, 0))
        return found

    def statistics(self) -> FetchStatistics:
        """Return the figures of its requests."""
        return self._fetch.statistics()

    async def aclose(self) -> None:
        """Close the store where it was opened here; it is opened anew when it is used again."""
        if self.owns_store and isinstance(self.store, ObjectStore):
            await self.store.aclose()

    async def _part(self, request: tuple[ObjectInfo, int, int]) -> memoryview:
        info, start, stop = request
        if start == stop:
            return memoryview(b"")
        payload: memoryview = await self._fetch(("range", info, start, stop))
        return payload

    async def _ask(self, request: _Request) -> Any:
        kind, what, start, stop = request
        if kind == "range":
            payload = await self.store.get_range(what.key, start, stop, etag=what.etag)
            require_length(what.key, len(payload), stop - start)
            return payload
        if kind == "head":
            return await self.store.head(what)
        found: list[ObjectInfo] = []
        async for page in self.store.list(what):
            found += page
        return sorted(found, key=operator.attrgetter("key"))


def _rebuild(store: Store, owns_store: bool, policy: FetchPolicy, gap: int, most: int) -> Ranges:
    ranges = Ranges(store, policy, gap=gap, most=most)
    ranges.owns_store = owns_store
    return ranges


def _described(request: _Request) -> str:
    kind, what, start, stop = request
    if kind == "range":
        return f"{what.key}[{start}:{stop}]"
    return f"the listing of {what!r}" if kind == "list" else str(what)


def element_fetch(
    function: Callable[[int], Awaitable[T]], policy: FetchPolicy, name: Callable[[int], str]
) -> Fetch[int, T]:
    """Return a `Fetch` of elements, whose requests have their limits and retries already.

    More elements than requests may be under way, or few ranges were asked for at once.
    """
    return Fetch(
        function,
        FetchPolicy(
            concurrency=max(_LEAST_ELEMENTS, 4 * policy.concurrency),
            attempt_timeout=None,
            item_timeout=None,
            retries=0,
            max_bytes=policy.max_bytes,
        ),
        name=name,
    )


def with_elements(requests: FetchStatistics, elements: Fetch[int, Any]) -> FetchStatistics:
    """Return the figures of requests, with the counts of elements that they were made for."""
    counts = elements.statistics()
    return dataclasses.replace(
        requests, fetched=counts.fetched, failed=counts.failed, shared=counts.shared
    )


def row_number(index: object, length: int) -> int:
    """Return an index as a list takes it, from 0 and up.

    >>> row_number(-1, 5)
    4

    Raises:
        TypeError, IndexError: It is no whole number, or there is no such element.
    """
    if isinstance(index, bool) or not hasattr(index, "__index__"):
        raise TypeError(f"index={index!r} must be a whole number")
    number = operator.index(index)
    if not -length <= number < length:
        raise IndexError(f"index={number} is out of range: there are {length:,} elements")
    return number + length if number < 0 else number


async def in_order(
    function: Callable[[T], Awaitable[R]], items: Sequence[T], *, at_once: int
) -> list[R]:
    """Return what a coroutine function makes of each item; the first error ends all."""
    results: dict[int, R] = {}
    errors: list[Exception] = []
    numbers = iter(range(len(items)))

    async def work() -> None:
        for number in numbers:
            try:
                results[number] = await function(items[number])
            except Exception as error:  # out of a task group it would come wrapped
                errors.append(error)
                group.cancel_scope.cancel()
                return

    async with anyio.create_task_group() as group:
        for _ in range(min(at_once, len(items))):
            group.start_soon(work)
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(items))]


@final
class Once(Generic[T]):
    """Something that is made when it is first wanted, once on each event loop at a time.

    Pickled, it takes what was made along.
    """

    def __init__(self, value: T | None = None) -> None:
        self.value = value
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, anyio.Lock] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return Once, (self.value,)

    async def get(self, make: Callable[[], Awaitable[T]]) -> T:
        """Return it, and make it if need be."""
        if self.value is None:
            loop = asyncio.get_running_loop()
            lock = self._locks.get(loop)
            if lock is None:
                lock = self._locks[loop] = anyio.Lock()
            async with lock:
                if self.value is None:
                    self.value = await make()
        return self.value
