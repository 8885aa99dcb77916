"""Remote objects through several loaders: what each is told, and what it has to bring."""

from __future__ import annotations

import http.client
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import xxhash

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

OBJECT_BYTES = 64 * 1024


@dataclass(frozen=True)
class Task:
    """An epoch of objects: ``/00000`` to ``/{count - 1}`` at ``url``, in batches."""

    url: str
    count: int = 5000
    batch_size: int = 64
    concurrency: int = 64
    workers: int = 1
    client: str = "aiohttp"
    ordered: bool = True
    depth: int = 16
    hedge: float | None = None
    decode: int = 0

    def key(self, number: int) -> str:
        """Return an object's name."""
        return f"{number:05}"


class Digest:
    """Adds up what came, whatever its order."""

    def __init__(self) -> None:
        self.value = self.rows = 0

    def add(self, content: Any) -> None:
        """Add one object."""
        self.value ^= xxhash.xxh3_64_intdigest(content)
        self.rows += 1

    def add_batch(self, batch: Any) -> None:
        """Add a batch of them."""
        for row in np.asarray(batch):
            self.add(row)


@asynccontextmanager
async def by_aiohttp(task: Task) -> AsyncIterator[Callable[[int], Awaitable[Any]]]:
    """Fetch by aiohttp."""
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def fetch(number: int) -> bytes:
            async with session.get(f"{task.url}/{task.key(number)}") as answer:
                answer.raise_for_status()
                return await answer.read()

        yield fetch


@asynccontextmanager
async def by_obstore(task: Task) -> AsyncIterator[Callable[[int], Awaitable[Any]]]:
    """Fetch by obstore."""
    import obstore

    store = obstore.store.from_url(task.url, client_options={"allow_http": True})

    async def fetch(number: int) -> Any:
        answer = await obstore.get_async(store, task.key(number))
        return memoryview(await answer.bytes_async())

    yield fetch


CLIENTS = {"aiohttp": by_aiohttp, "obstore": by_obstore}
_local = threading.local()


def fetch_blocking(task: Task, number: int) -> np.ndarray:
    """Fetch in this thread, over a connection that it keeps: for loaders without a loop."""
    connection = getattr(_local, "connection", None)
    if connection is None:
        host = urlsplit(task.url)
        connection = _local.connection = http.client.HTTPConnection(host.hostname or "", host.port)
    connection.request("GET", f"/{task.key(number)}")
    return np.frombuffer(connection.getresponse().read(), np.uint8)


def stacked(rows: Sequence[Any]) -> np.ndarray:
    """Return one batch."""
    return np.stack([np.frombuffer(row, np.uint8) for row in rows])
