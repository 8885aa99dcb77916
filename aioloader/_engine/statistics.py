"""Statistics: what a loader has done and what it waits for, as frozen snapshots."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

if TYPE_CHECKING:
    from aioloader._caches.disk import CacheCounts
    from aioloader._fetching.statistics import FetchStatistics

__all__ = ["Bound", "LoaderStatistics", "Meter", "verdict"]

Stage = Literal["fetch", "load", "place"]
Bound = Literal["fetch", "load", "place", "consumer"]

_CONSUMER_IDLE_SHARE = 0.05


@final
@dataclass(frozen=True, slots=True)
class LoaderStatistics:
    """A snapshot of a loader.

    ``waiting`` tickets wait for a slot (1 when all slots are taken), ``loading`` batches are
    being loaded, ``ready`` ones wait for the consumer, and ``on_loan`` slots are not free.
    Counts are of the run since the loader was entered. The seconds are sums over all that
    ran at once: ``load_seconds`` of two workers grow twice as fast as the clock.
    ``cache`` counts what the groups' caches on disk had, and had not.
    ``wait_seconds`` is what the consumer spent waiting, ``idle_share`` its share of the time
    since the first batch was delivered. ``bound_by`` names what to improve first. ``fetch``
    is what the loader's `Fetch` has done, in earlier runs too; None where it has none.
    """

    waiting: int
    loading: int
    ready: int
    on_loan: int
    delivered: int
    dropped: int
    rows: int
    bytes: int
    rows_per_second: float
    fetch_seconds: float
    load_seconds: float
    store_seconds: float
    place_seconds: float
    wait_seconds: float
    elapsed_seconds: float
    idle_share: float
    retries: int
    worker_deaths: int
    bound_by: Bound
    cache: CacheCounts
    fetch: FetchStatistics | None = None


@final
class Meter:
    """Adds up what a session does."""

    def __init__(self) -> None:
        self.delivered = self.dropped = self.rows = self.bytes = self.retries = 0
        self.rows_after_first = 0
        self.fetch_seconds = self.load_seconds = 0.0
        self.store_seconds = self.place_seconds = self.wait_seconds = 0.0
        self._first_wait_seconds = 0.0
        # How long batches were in each stage: what the verdict compares.
        self._spans = {"fetch": 0.0, "load": 0.0, "place": 0.0}
        self._early_spans = dict(self._spans)
        self._started: float | None = None
        self._stopped: float | None = None
        self._idle_usec = 0.0

    def waited(self, seconds: float) -> None:
        """Note that the consumer waited."""
        self.wait_seconds += seconds
        self._idle_usec += seconds * 1e6

    def deliver(self, rows: int, nbytes: int) -> None:
        """Note that a batch was delivered."""
        if self._started is None:
            # The start of workers and of JAX is no rate: the clock starts with batch one.
            self._started = time.perf_counter()
            self._first_wait_seconds = self.wait_seconds
        else:
            self.rows_after_first += rows
        self.rows += rows
        self.delivered += 1
        self.bytes += nbytes

    def span(self, stage: Stage, started: float, seconds: float) -> None:
        """Note how long a batch was in a stage, by ``time.perf_counter``."""
        # Those that began before anything was delivered waited for workers to start, too.
        early = self._started is None or started < self._started
        (self._early_spans if early else self._spans)[stage] += seconds

    @property
    def bound_by(self) -> Bound:
        """What limits the rate."""
        spans = self._spans if any(self._spans.values()) else self._early_spans
        return verdict(self.idle_share, **spans)

    def take_idle_usec(self) -> int:
        """Return the microseconds the consumer has waited since the last call."""
        idle, self._idle_usec = self._idle_usec, 0.0
        return int(idle)

    @property
    def elapsed_seconds(self) -> float:
        """The seconds since the first batch was delivered."""
        if self._started is None:
            return 0.0
        return (self._stopped or time.perf_counter()) - self._started

    def stop(self) -> None:
        """Stop the clock: the run is over."""
        self._stopped = time.perf_counter()

    @property
    def idle_share(self) -> float:
        """The share of those seconds that the consumer spent waiting."""
        elapsed = self.elapsed_seconds
        if self._started is None:
            return 1.0 if self.wait_seconds > 0 else 0.0
        waited = self.wait_seconds - self._first_wait_seconds
        return min(waited / elapsed, 1.0) if elapsed > 0 else 0.0


def verdict(idle_share: float, fetch: float, load: float, place: float) -> Bound:
    """Name what limits the rate, from how long batches spent in each stage.

    A consumer that hardly ever waits is itself the limit. Else it is the stage in which
    batches spend most of their time once the stage before it was done with them.

    >>> verdict(0.01, 5.0, 3.0, 0.0), verdict(0.8, 5.0, 3.0, 0.0), verdict(0.8, 0.0, 1.0, 2.0)
    ('consumer', 'fetch', 'place')
    """
    if idle_share < _CONSUMER_IDLE_SHARE:
        return "consumer"
    spans: dict[Bound, float] = {"load": load, "fetch": fetch, "place": place}
    return max(spans, key=lambda stage: spans[stage])
