"""Functions that fetch objects of the web server, by aiohttp and by obstore: one attempt each."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp

from aioloader.sources import ObjectStore, ShortRead
from servers.fixtures import content

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["CLIENTS", "by_aiohttp", "by_obstore", "name_of"]


def name_of(number: int) -> str:
    """Return the key of an object."""
    return f"o/{number:03}"


def checked(number: int, payload: Any) -> Any:
    """Return a payload whose length is right: what it should be is known beforehand."""
    if len(payload) != len(content(number)):
        raise ShortRead(f"{name_of(number)} is {len(payload)} bytes long")
    return payload


@asynccontextmanager
async def by_aiohttp(url: str) -> AsyncIterator[Callable[[int], Awaitable[Any]]]:
    """Fetch by aiohttp, which retries requests that meet a connection that has been closed."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def fetch(number: int) -> Any:
            async with session.get(f"{url}/{name_of(number)}") as answer:
                answer.raise_for_status()
                return checked(number, await answer.read())

        yield fetch


@asynccontextmanager
async def by_obstore(url: str) -> AsyncIterator[Callable[[int], Awaitable[Any]]]:
    """Fetch by obstore, whose own retries are switched off."""
    store = ObjectStore(url)

    async def fetch(number: int) -> Any:
        payload, _ = await store.get(name_of(number))
        return checked(number, payload)

    try:
        yield fetch
    finally:
        await store.aclose()


CLIENTS = {"aiohttp": by_aiohttp, "obstore": by_obstore}
