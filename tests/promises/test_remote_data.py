"""Remote data: whatever server and network do, an epoch is right, or an error says what was not.

And nothing hangs, nothing is left behind, and memory stays bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from servers.clients import CLIENTS, by_aiohttp, name_of
from servers.fixtures import OBJECTS, Served, content, serving, web, web_folder, web_process
from support import both_loops, run_on, until

from aioloader import DataGroup, Fetch, FetchError, FetchPolicy, Loader, LoadError
from aioloader.sources.object_store import wake_runtime
from aioloader.testing import Census

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

__all__ = ["web", "web_folder", "web_process"]

SIZE = 16
ARRAYS = {"number": ((), "int64", "int32"), "sum": ((), "int64", "int32")}
KINDS = "reset,stall,truncate,lie,408,429,500,503"
each_client = pytest.mark.parametrize("client", list(CLIENTS))


@pytest.fixture(scope="module", autouse=True)
def _runtime_is_up() -> None:
    """obstore starts threads when first used, and keeps them; they are nobody's leak."""
    wake_runtime()


def load(payload: Any, arrays: Any, seed: int | None) -> None:
    arrays["number"][...] = int.from_bytes(payload[:8], "big")
    arrays["sum"][...] = np.frombuffer(payload, np.uint8).sum()


def expected(numbers: Any) -> list[tuple[int, int]]:
    return [(n, int(np.frombuffer(content(n), np.uint8).sum())) for n in numbers]


def rows_of(batch: Any) -> list[tuple[int, int]]:
    return list(zip(batch.arrays["number"].tolist(), batch.arrays["sum"].tolist(), strict=True))


def policy(**options: Any) -> FetchPolicy:
    usual = {"concurrency": 64, "attempt_timeout": 0.4, "backoff": 0.01, "retries": 20}
    return FetchPolicy(**{**usual, **options})


@contextlib.asynccontextmanager
async def epoch(
    server: Served, client: str = "aiohttp", fetching: FetchPolicy | None = None, **options: Any
) -> AsyncIterator[tuple[Loader[int], Fetch[int, Any]]]:
    """Open a loader over all objects, and over those numbers that ``numbers`` says."""
    group = DataGroup(SIZE, options.pop("numbers", range(OBJECTS)), loader_arrays=ARRAYS)
    async with CLIENTS[client](server.url) as function:
        fetch = Fetch(function, fetching or policy(), name=name_of)
        settings = {"num_workers": 0, "end_at": ("epoch", 1), **options}
        async with Loader(load, group, fetch=fetch, **settings) as loader:
            yield loader, fetch


# Faults that pass ---------------------------------------------------------------------------------


@both_loops
@each_client
def test_an_epoch_from_a_faulty_server_is_right(loop: str, client: str, web: Served) -> None:
    """One request in five is reset, stalls, breaks off, lies about its length or is refused."""

    async def main() -> None:
        web.set(faults=0.2, kinds=KINDS, seed=3)
        async with epoch(web, client, policy(hedge_quantile=0.9)) as (loader, fetch):
            rows = [row async for batch in loader for row in rows_of(batch)]
            figures = loader.statistics().fetch
        assert rows == expected(range(OBJECTS))
        assert figures is not None
        assert figures == fetch.statistics()
        counts = web.counts()
        assert {f"fault {kind}" for kind in KINDS.split(",")} <= counts.keys()
        assert (figures.fetched, figures.failed) == (OBJECTS, 0)
        # A hedge may lose before it is sent, and aiohttp resends on a connection found closed.
        assert abs(counts["requests"] - figures.requests) < OBJECTS // 8
        seconds = loader.statistics().elapsed_seconds
        assert 20 < figures.retries <= 64 + 0.5 * OBJECTS + 10 * (seconds + 1)
        assert figures.throttled
        assert figures.timeouts

    run_on(loop, main())


async def test_payloads_reach_workers(web: Served) -> None:
    """As views of what the client received."""
    async with epoch(web, "obstore", num_workers=1, deterministic=False) as (loader, _):
        rows = [row async for batch in loader for row in rows_of(batch)]
    assert sorted(rows) == expected(range(OBJECTS))


async def test_an_epoch_survives_its_servers_death(web_folder: Path) -> None:
    """Killed in mid-epoch, with requests in flight, and started again."""
    with serving(web_folder, "--latency", "0.01") as server:
        patient = policy(retries=1000, max_backoff=0.2, concurrency=8)
        async with epoch(server, fetching=patient) as (loader, fetch):
            rows = rows_of(await anext(loader))
            server.kill()
            before = fetch.statistics().retries
            await until(lambda: fetch.statistics().retries > before + 3)
            server.restart()
            rows += [row async for batch in loader for row in rows_of(batch)]
        assert rows == expected(range(OBJECTS))


# Faults that stay ---------------------------------------------------------------------------------


@each_client
async def test_what_is_not_there_is_an_error_that_says_so(client: str, web: Served) -> None:
    """In its batch's turn, at once; the epoch goes on behind it."""
    async with epoch(web, client, numbers=[*range(20), 999, *range(20, 47)]) as (loader, _):
        rows = rows_of(await anext(loader))
        with pytest.raises(LoadError, match=r"o/999 could not be fetched: 1 attempt in ") as e:
            await anext(loader)
        rows += rows_of(await anext(loader))
    assert rows == expected([*range(16), *range(31, 47)])
    cause = e.value.__cause__
    assert isinstance(cause, FetchError)
    assert (cause.key, cause.attempts, e.value.item, e.value.row) == ("o/999", 1, 999, 4)
    assert re.search("404|missing", cause.reason)


@each_client
async def test_what_never_answers_is_an_error_within_the_deadline(client: str, web: Served) -> None:
    web.set(always="stall", victims="o/020")
    limited = policy(attempt_timeout=0.1, item_timeout=0.5)
    async with epoch(web, client, limited, numbers=range(48)) as (loader, _):
        rows = rows_of(await anext(loader))
        with pytest.raises(LoadError, match="TimeoutError: no answer within") as caught:
            await anext(loader)
        rows += rows_of(await anext(loader))
    assert rows == expected([*range(16), *range(32, 48)])
    cause = caught.value.__cause__
    assert isinstance(cause, FetchError)
    assert cause.key == "o/020"
    assert cause.attempts >= 3
    assert 0.3 <= cause.seconds < 5.0  # of 0.5, on a machine that has other things to do


async def test_dropped_batches_are_those_with_faults_that_stay(web: Served, caplog: Any) -> None:
    """And they are counted."""
    web.set(faults=0.2, kinds="reset,truncate,lie,429,500,503")
    caplog.set_level(logging.ERROR, "aioloader")
    numbers = [999 if n in (20, 25, 100) else n for n in range(128)]
    async with epoch(web, numbers=numbers, on_error="drop") as (loader, _):
        rows = [row async for batch in loader for row in rows_of(batch)]
        figures = loader.statistics()
    assert rows == expected([n for n in range(128) if n // 16 not in (1, 6)])
    assert (figures.dropped, figures.delivered) == (2, 6)
    assert figures.fetch is not None
    assert figures.fetch.failed >= 2  # those that were asked for at once share a failure


def left_beyond(before: Census) -> list[str]:
    """Return the sockets and tasks that there were not before."""
    left = Census.take().beyond(before)
    sockets = [name for name in left.get("descriptors", ()) if "socket" in name]
    return sockets + left.get("tasks", [])


# Leaving ------------------------------------------------------------------------------------------


@both_loops
@each_client
def test_leaving_with_many_requests_in_flight_is_quick(loop: str, client: str, web: Served) -> None:
    """Half a second at most, and no socket, task or file is left: the best of three."""
    web.set(always="stall", victims="o/")

    async def leave() -> float:
        asking = policy(concurrency=256, attempt_timeout=None, item_timeout=None)
        before = Census.take()
        async with contextlib.AsyncExitStack() as stack:
            loader, fetch = await stack.enter_async_context(
                epoch(web, client, asking, depth=OBJECTS // SIZE)
            )
            task = asyncio.ensure_future(anext(loader))
            await until(lambda: fetch.statistics().in_flight == 256)
            await until(lambda: web.counts()["in_flight"] == 256)
            task.cancel()
            await asyncio.wait([task])
            started = time.perf_counter()
        seconds = time.perf_counter() - started
        await until(lambda: web.counts()["in_flight"] == 0)
        await until(lambda: not left_beyond(before))
        return seconds

    seconds: list[float] = []
    while len(seconds) < 3 and (not seconds or min(seconds) > 0.5):
        seconds.append(run_on(loop, leave()))
    assert min(seconds) <= 0.5


# Memory, and figures ------------------------------------------------------------------------------


async def test_payloads_in_memory_stay_within_their_bytes(web: Served) -> None:
    """However slow the loading is; one payload more at most."""
    size = len(content(6))
    numbers = [6 + 7 * n for n in range(32)]  # all of this size
    lock, alive, most = threading.Lock(), 0, 0
    go = threading.Semaphore(0)

    def count(nbytes: int) -> None:
        nonlocal alive, most
        with lock:
            alive += nbytes
            most = max(most, alive)

    def slow(payload: Any, arrays: Any, seed: int | None) -> None:
        go.acquire(timeout=20)
        load(payload, arrays, seed)
        count(-len(payload))

    async with by_aiohttp(web.url) as function:

        async def fetch(number: int) -> Any:
            payload = await function(number)
            count(len(payload))
            return payload

        group = DataGroup(4, numbers, loader_arrays=ARRAYS)
        bounded = Fetch(fetch, policy(max_bytes=5 * size))
        options: Any = {"num_workers": 0, "depth": 8, "end_at": ("epoch", 1)}
        async with Loader(slow, group, fetch=bounded, **options) as loader:
            first = asyncio.ensure_future(anext(loader))
            await until(lambda: alive >= 5 * size)
            for _ in numbers:
                go.release()
            rows = rows_of(await first)
            rows += [row async for batch in loader for row in rows_of(batch)]
    assert rows == expected(numbers)
    assert 5 * size <= most <= 6 * size


async def test_a_loader_that_waits_for_its_store_says_so(web: Served) -> None:
    web.set(latency=0.02)
    async with epoch(web, fetching=policy(concurrency=8), numbers=range(128)) as (loader, _):
        async for batch in loader:
            del batch
        figures = loader.statistics()
    assert figures.bound_by == "fetch"
    assert figures.fetch is not None
    assert (figures.fetch.fetched, figures.fetch.limit) == (128, 8)
    assert figures.fetch.bytes == sum(len(content(n)) for n in range(128))
    assert 0.02 <= figures.fetch.p50_seconds <= figures.fetch.p99_seconds


async def test_a_loader_without_a_policy_has_no_such_figures(web: Served) -> None:
    async with by_aiohttp(web.url) as fetch:
        group = DataGroup(4, range(8), loader_arrays=ARRAYS)
        async with Loader(load, group, fetch=fetch, num_workers=0) as loader:
            await anext(loader)
            assert loader.statistics().fetch is None
