"""The summary: a session's meter and counts as the statistics that users see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aioloader._engine.statistics import LoaderStatistics, Meter
from aioloader._fetching.fetch import Fetch

if TYPE_CHECKING:
    from aioloader._caches.disk import CacheCounts

__all__ = ["summarize"]


def summarize(
    meter: Meter,
    counts: tuple[int, int, int, int],
    worker_deaths: int,
    cache: CacheCounts,
    fetch: object = None,
) -> LoaderStatistics:
    """Return a frozen snapshot."""
    waiting, loading, ready, on_loan = counts
    elapsed = meter.elapsed_seconds
    return LoaderStatistics(
        waiting=waiting,
        loading=loading,
        ready=ready,
        on_loan=on_loan,
        delivered=meter.delivered,
        dropped=meter.dropped,
        rows=meter.rows,
        bytes=meter.bytes,
        rows_per_second=meter.rows_after_first / elapsed if elapsed > 0 else 0.0,
        fetch_seconds=meter.fetch_seconds,
        load_seconds=meter.load_seconds,
        store_seconds=meter.store_seconds,
        place_seconds=meter.place_seconds,
        wait_seconds=meter.wait_seconds,
        elapsed_seconds=elapsed,
        idle_share=meter.idle_share,
        retries=meter.retries,
        worker_deaths=worker_deaths,
        bound_by=meter.bound_by,
        cache=cache,
        fetch=fetch.statistics() if isinstance(fetch, Fetch) else None,
    )
