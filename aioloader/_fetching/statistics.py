"""Statistics of requests, as frozen snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from aioloader._fetching.latency import Latency

__all__ = ["Counts", "FetchStatistics"]


@final
@dataclass(frozen=True, slots=True)
class FetchStatistics:
    """A snapshot of what a `Fetch` or a source has done.

    ``requests`` counts all that were made, ``retries`` and ``hedges`` among them;
    ``hedges_won`` those hedges that answered first. ``shared`` items were fetched once for
    several who asked, ``fetched`` and ``failed`` items are done with; ``local`` ones came from
    a local tier. ``timeouts`` counts requests given up, ``throttled`` those the store refused
    for now. ``bytes`` are those of payloads. ``p50_seconds`` and ``p99_seconds`` are of the
    last thousand requests that succeeded. ``in_flight`` requests are under way now, of at
    most ``limit``.
    """

    requests: int = 0
    fetched: int = 0
    failed: int = 0
    shared: int = 0
    local: int = 0
    retries: int = 0
    hedges: int = 0
    hedges_won: int = 0
    timeouts: int = 0
    throttled: int = 0
    bytes: int = 0
    in_flight: int = 0
    limit: int = 0
    p50_seconds: float = 0.0
    p99_seconds: float = 0.0


@final
class Counts:
    """Adds up what is done."""

    def __init__(self) -> None:
        self.requests = self.fetched = self.failed = self.shared = self.local = 0
        self.retries = self.hedges = self.hedges_won = 0
        self.timeouts = self.throttled = self.bytes = 0
        self.latency = Latency(window=1000)

    def snapshot(self, in_flight: int, limit: int) -> FetchStatistics:
        """Return them, frozen."""
        return FetchStatistics(
            requests=self.requests,
            fetched=self.fetched,
            failed=self.failed,
            shared=self.shared,
            local=self.local,
            retries=self.retries,
            hedges=self.hedges,
            hedges_won=self.hedges_won,
            timeouts=self.timeouts,
            throttled=self.throttled,
            bytes=self.bytes,
            in_flight=in_flight,
            limit=limit,
            p50_seconds=self.latency.quantile(0.5),
            p99_seconds=self.latency.quantile(0.99),
        )
