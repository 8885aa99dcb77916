"""The RAM cache: rows of a provider, kept from one epoch to the next, and preloaded."""

from __future__ import annotations

import asyncio
import logging
import operator
import threading
import weakref
from typing import TYPE_CHECKING, Any, final

import anyio

from aioloader._caches.loading import Rows
from aioloader._caches.preloading import (
    PreloadProgress,
    PreloadRun,
    preload_here,
    preload_in_thread,
)
from aioloader._caches.provider import (
    is_coroutine_function,
    resolver_of,
    rows_in,
    switch,
    whole_number,
)
from aioloader._caches.reporting import Reporter
from aioloader._caches.shelf import POLICIES, Policy, Shelf
from aioloader._caches.sizes import data_size
from aioloader._caches.statistics import CacheStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from aioloader.metrics import MetricsSink

__all__ = ["DataCache"]

_logger = logging.getLogger("aioloader.cache")
_LEAVE_SECONDS = 0.15


@final
class DataCache:
    """Keep the rows of a provider in RAM, so that later epochs need not load them again.

    ``await cache.get_or_load(idx)`` returns a row, from memory or from the provider, and loads
    it once however many ask meanwhile, in tasks, in threads or on several event loops;
    ``cache[idx]`` does the same in a thread. A cache is itself a sequence of its rows, and so
    may be the data of whatever takes one. All of it is thread-safe.

    What is kept is a private copy. Arrays are handed out as read-only views of it, containers
    as copies, and objects of unknown types as deep copies, so that nothing a consumer does is
    seen by the next one. A value that cannot be copied is handed out and not kept.

    ``async with`` preloads in the background where the configuration says so, and stops doing
    that at its end; what is kept stays. Preloading stops when there is no room left, and lets
    those who wait for a row have it before it begins another.

    Args:
        config: A mapping with ``config["data_set"]["use_cache"]``, without which every row comes
            from the provider, and ``config["data_set"]["preload_cache"]``.
        data_provider: What has the rows: a length, and ``resolve_data(idx)`` or
            ``__getitem__``. A coroutine function runs on the event loop, any other in a thread.
        max_bytes: What may be kept, by `_data_size`; None for no limit. Rows that are being
            loaded are not in it: at most ``max_preload_workers``, and those that somebody asks
            for.
        policy: What is given up to make room: ``"lru"`` (what was used least recently),
            ``"fifo"`` (what is oldest) or ``"none"`` (what is new is refused).
        max_preload_workers: How many rows are preloaded at once.
        metrics: Where to report hit rate, seconds and bytes.
        logging_interval: After how many rows, and fetches, there is a report.

    Raises:
        KeyError: The configuration lacks a key.
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range.

    >>> config = {"data_set": {"use_cache": True, "preload_cache": False}}
    >>> cache = DataCache(config, ["a", "b", "c"])
    >>> cache[1], cache[1], cache.statistics().hit_rate
    ('b', 'b', 0.5)
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        data_provider: Any,
        *,
        max_bytes: int | None = None,
        policy: Policy = "lru",
        max_preload_workers: int = 4,
        metrics: MetricsSink | None = None,
        logging_interval: int = 1000,
    ) -> None:
        self._use_cache = switch(config, "use_cache")
        self._preload_cache = switch(config, "preload_cache")
        if policy not in POLICIES:
            raise ValueError(f"policy={policy!r} must be one of {', '.join(POLICIES)}")
        if max_bytes is not None:
            max_bytes = whole_number("max_bytes", max_bytes)
        self._max_preload_workers = whole_number(
            "max_preload_workers", max_preload_workers, at_least=1
        )
        self.logging_interval = whole_number("logging_interval", logging_interval, at_least=1)
        self._arguments = (config, data_provider, max_bytes, policy, max_preload_workers)
        self._max_length = rows_in(data_provider)
        self._data_provider = data_provider
        self._resolve_data_func = resolver_of(data_provider)
        self._reporter = Reporter(metrics)
        self._shelf = Shelf(max_bytes, policy)
        self._rows = Rows(
            self._resolve_data_func,
            is_async=is_coroutine_function(self._resolve_data_func),
            shelf=self._shelf if self._use_cache else None,
            reporter=self._reporter,
            interval=_interval_of(weakref.ref(self)),
        )
        self._run: PreloadRun | None = None
        self._unread: PreloadRun | None = None
        self._preload_thread: threading.Thread | None = None
        self._driver: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        now = self.statistics()
        kept = f"{now.items} of {len(self)} rows, {now.bytes} bytes, hit rate {now.hit_rate:.2f}"
        return f"<DataCache: {kept if self._use_cache else 'off'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process gets an empty one, without a sink: to send the rows would cost more than
        # to load them.
        return _rebuild, (*self._arguments, self.logging_interval)

    def __len__(self) -> int:
        return self._max_length

    def __getitem__(self, idx: int) -> Any:
        return self.get_or_load_sync(idx)

    def __contains__(self, idx: object) -> bool:
        return idx in self._shelf.entries

    # Fetching and inserting ---------------------------------------------------------------------

    async def get_or_load(self, idx: int) -> Any:
        """Return a row; loads it, or waits for whoever does, where it is not kept.

        A waiter that is cancelled takes the load with it only if it is the last one, and not
        out of a thread that has begun with it. An error comes to all who wait, and the next
        one tries again.

        Raises:
            IndexError: There is no such row.
            TypeError: ``idx`` is no integer.
        """
        index = self._idx_check(idx)
        found, value = self._rows.look(index)
        return value if found else await self._rows.wait_for(index)

    def get_or_load_sync(self, idx: int) -> Any:
        """Do the same in a thread, and block it; ``cache[idx]`` is short for it.

        A provider that is a coroutine function runs on the loop on which the cache was entered,
        else on one of its own. To call it on an event loop then raises :class:`RuntimeError`.
        """
        index = self._idx_check(idx)
        found, value = self._rows.look(index)
        return value if found else self._rows.wait_here(index, self._loop)

    def try_fetch(self, idx: int) -> Any | None:
        """Return a row if it is kept, else None. Never blocks."""
        return self._rows.look(self._idx_check(idx))[1]

    def insert_into_cache(self, idx: int, data: Any) -> None:
        """Keep a copy of a row, in the place of any that is kept; what does not fit is refused."""
        index = self._idx_check(idx)
        if self._use_cache:
            self._rows.insert(index, data)

    def clear(self) -> None:
        """Give up everything that is kept."""
        with self._rows.lock:
            given_up = self._shelf.clear()
        del given_up  # after the lock, for the end of a value may run any code

    def _idx_check(self, idx: Any) -> int:
        """Return an index as a plain ``int``, or raise what is wrong with it."""
        try:
            index = operator.index(idx)
        except TypeError:
            index = None
        if index is None or isinstance(idx, bool):
            raise TypeError(f"idx={idx!r} must be an integer")
        if not 0 <= index < self._max_length:
            raise IndexError(f"idx={index} is out of range: there are {self._max_length} rows")
        return index

    _data_size = staticmethod(data_size)

    # Preloading ---------------------------------------------------------------------------------

    async def preload(self) -> PreloadProgress:
        """Load all rows, until there is no room for one; returns what became of them.

        Where the cache preloads already it waits for that, and to cancel it does not end it.
        Rows that raise are logged and passed over; at the end the first error is raised.
        """
        if not self._use_cache:
            return PreloadProgress(total=self._max_length)
        run = self._unread
        if run is None:
            run = self._new_run()
            await preload_here(run, weakref.ref(self._rows), self._max_preload_workers)
        else:
            await asyncio.wrap_future(run.ended)
        if self._unread is run:
            self._unread = None
        run.raise_first_error()
        return run.progress

    def start_preload_thread(self) -> None:
        """Preload in a daemon thread, if the configuration says so; harmless to repeat.

        It ends with its last row, with `close`, or when the cache is collected.
        """
        with self._rows.lock:
            busy = self._run is not None and not self._run.ended.done()
            if busy or not (self._use_cache and self._preload_cache):
                return
            run = self._unread = self._new_run()
        workers, is_async = self._max_preload_workers, self._rows.is_async
        self._preload_thread = threading.Thread(
            target=preload_in_thread,
            args=(run, weakref.ref(self._rows), workers, is_async),
            name="aioloader-preload-0",
            daemon=True,
        )
        self._preload_thread.start()

    def _new_run(self) -> PreloadRun:
        run = self._run = PreloadRun(self._max_length, self._rows.gate, self.logging_interval)
        weakref.finalize(self, run.halt).atexit = False
        return run

    def close(self) -> None:
        """Stop preloading, and report what is left to report. What is kept stays.

        A row that is being loaded in a thread is waited for, but not for long.
        """
        if self._run is not None:
            self._run.stop()
        thread = self._preload_thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_LEAVE_SECONDS)
        self._flush()

    def _flush(self) -> None:
        with self._rows.lock:
            nbytes, items = self._shelf.nbytes, len(self._shelf.entries)
        self._reporter.flush(nbytes=nbytes, items=items)

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise RuntimeError("this cache has been entered already")
        self._loop = asyncio.get_running_loop()
        busy = self._run is not None and not self._run.ended.done()
        if self._use_cache and self._preload_cache and not busy:
            run = self._unread = self._new_run()
            preloading = preload_here(run, weakref.ref(self._rows), self._max_preload_workers)
            self._driver = asyncio.create_task(preloading, name="aioloader-preload")
        return self

    async def __aexit__(self, *exc: object) -> None:
        driver, self._driver, self._loop = self._driver, None, None
        if self._run is not None:
            self._run.stop()
        try:
            if driver is not None:
                driver.cancel()
                await _finish(driver)
            await self._leave()
        finally:
            self._flush()

    async def _leave(self) -> None:
        """Wait, but not for long, for what has been called off and for a thread's last row."""
        loop = asyncio.get_running_loop()
        tasks = [t for t in self._rows.tasks.copy() if t.get_loop() is loop and t.cancelling()]
        if tasks:
            await asyncio.wait(tasks, timeout=_LEAVE_SECONDS)
        run = self._run
        if run is not None and not run.ended.done():
            with anyio.move_on_after(_LEAVE_SECONDS, shield=True):
                await asyncio.wrap_future(run.ended)

    # Figures ------------------------------------------------------------------------------------

    def statistics(self) -> CacheStatistics:
        """Return a snapshot of what the cache has done."""
        rows, shelf, run = self._rows, self._shelf, self._run
        with rows.lock:
            return CacheStatistics(
                items=len(shelf.entries),
                bytes=shelf.nbytes,
                loading=len(rows.flights),
                waiting=rows.gate.demand,
                hits=rows.hits,
                misses=rows.misses,
                inserts=shelf.inserts,
                replaced=shelf.replaced,
                evictions=shelf.evictions,
                refusals=shelf.refusals,
                failures=rows.failures,
                preload=PreloadProgress(total=len(self)) if run is None else run.progress,
            )

    @property
    def _insert_count(self) -> int:
        return self._shelf.inserts

    @property
    def _data_size_bytes(self) -> int:
        return self._shelf.nbytes

    @property
    def _cache_map(self) -> dict[int, Any]:
        with self._rows.lock:
            entries = dict(self._shelf.entries)
        return {index: entry.kept.make() for index, entry in entries.items()}


def _interval_of(cache: weakref.ref[DataCache]) -> Callable[[], int]:
    def interval() -> int:
        alive = cache()
        return 1000 if alive is None else max(alive.logging_interval, 1)

    return interval


def _rebuild(
    config: Any, provider: Any, max_bytes: Any, policy: Any, workers: int, interval: int
) -> DataCache:
    return DataCache(
        config,
        provider,
        max_bytes=max_bytes,
        policy=policy,
        max_preload_workers=workers,
        logging_interval=interval,
    )


async def _finish(task: asyncio.Task[None]) -> None:
    """Wait for the end of a task that has been cancelled, whoever is cancelled meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if not task.cancelled() and task.exception() is not None:
        _logger.error("preloading failed", exc_info=task.exception())
    if cancelled is not None:
        raise cancelled
