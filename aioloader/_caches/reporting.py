"""Reporting: what the cache does, averaged over some calls, to a sink for metrics."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from aioloader.metrics import MetricsSink

__all__ = ["Reporter"]

_logger = logging.getLogger("aioloader.cache")
_PREFIX = "data_cache"


@final
class _Mean:
    """The sum of some seconds, and how many they were."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.seconds, self.count = 0.0, 0

    def add(self, seconds: float) -> None:
        self.seconds += seconds
        self.count += 1


@final
class Reporter:
    """Hand figures to a sink, every so many fetches and every so many inserts.

    All are means over the calls since the last ones: ``hit_rate``, ``hit_seconds`` and
    ``wait_seconds`` (of a fetch that is no hit), with the number of fetches as their step;
    ``load_seconds``, and ``bytes`` and ``items`` as they are, with that of inserts.
    """

    def __init__(self, sink: MetricsSink | None) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._sending = threading.RLock()  # so that no step comes after a later one
        self._fetches = self._inserts = 0
        self._hits, self._waits, self._loads = _Mean(), _Mean(), _Mean()

    @property
    def is_on(self) -> bool:
        """Whether anybody wants to know."""
        return self._sink is not None

    def fetched(self, *, hit: bool, seconds: float, every: int) -> None:
        """Note a fetch."""
        if self._sink is None:
            return
        with self._lock:
            self._fetches += 1
            (self._hits if hit else self._waits).add(seconds)
            due = self._fetches % every == 0
        if due:
            self._report_fetches()

    def loaded(self, seconds: float) -> None:
        """Note how long a load took."""
        if self._sink is not None:
            with self._lock:
                self._loads.add(seconds)

    def inserted(self, *, nbytes: int, items: int, every: int) -> None:
        """Note an insert, and what there is now."""
        if self._sink is None:
            return
        with self._lock:
            self._inserts += 1
            due = self._inserts % every == 0
        if due:
            self._report_inserts(nbytes, items)

    def flush(self, *, nbytes: int, items: int) -> None:
        """Report what has not been reported."""
        if self._hits.count or self._waits.count:
            self._report_fetches()
        if self._loads.count:
            self._report_inserts(nbytes, items)

    def _report_fetches(self) -> None:
        with self._sending:
            with self._lock:
                hits, waits, step = self._hits, self._waits, self._fetches
                self._hits, self._waits = _Mean(), _Mean()
            if fetches := hits.count + waits.count:
                self._send("hit_rate", hits.count / fetches, step)
            self._send_mean("hit_seconds", hits, step)
            self._send_mean("wait_seconds", waits, step)

    def _report_inserts(self, nbytes: int, items: int) -> None:
        with self._sending:
            with self._lock:
                loads, step = self._loads, self._inserts
                self._loads = _Mean()
            self._send_mean("load_seconds", loads, step)
            self._send("bytes", nbytes, step)
            self._send("items", items, step)

    def _send_mean(self, name: str, mean: _Mean, step: int) -> None:
        if mean.count:
            self._send(name, mean.seconds / mean.count, step)

    def _send(self, name: str, value: float, step: int) -> None:
        sink = self._sink
        try:
            if sink is not None:
                sink.scalar(f"{_PREFIX}/{name}", float(value), step)
        except Exception:
            self._sink = None
            _logger.exception("the metrics sink %r failed, and is not used any more", sink)
