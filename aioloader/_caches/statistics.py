"""Statistics of a cache: what it has done, as a frozen snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from aioloader._caches.preloading import PreloadProgress

__all__ = ["CacheStatistics"]


@final
@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """A snapshot of a cache.

    ``items`` are kept now, in ``bytes``; ``loading`` rows are on their way, and ``waiting``
    callers wait for one. Since the cache was made, there were ``hits`` and ``misses`` (those who
    waited for one load count one each), ``inserts``, of which ``replaced`` took the place of an
    older value, ``evictions``, ``refusals`` of values that did not fit or could not be copied,
    and ``failures`` of loads.
    """

    items: int
    bytes: int
    loading: int
    waiting: int
    hits: int
    misses: int
    inserts: int
    replaced: int
    evictions: int
    refusals: int
    failures: int
    preload: PreloadProgress

    @property
    def hit_rate(self) -> float:
        """The share of fetches that were hits, 0.0 before the first."""
        fetches = self.hits + self.misses
        return self.hits / fetches if fetches else 0.0
