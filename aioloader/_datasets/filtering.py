"""Filtering: how many elements a filter removes, and who is told if they are too many."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from aioloader._datasets.options import DatasetOptions

__all__ = ["Removals"]

_log = logging.getLogger("aioloader")

_WINDOW = 1000
_QUIET_SECONDS = 60.0
_warned_at: dict[str, float] = {}


@final
class Removals:
    """Counts what one iterator of a filter removes, 1000 elements at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen = 0
        self._removed = 0

    def count(self, is_kept: bool, options: DatasetOptions) -> None:
        """Note an element; warn or raise :class:`ValueError` behind each 1000th."""
        self._seen += 1
        if not is_kept:
            self._removed += 1
        if self._seen == _WINDOW:
            ratio = self._removed / _WINDOW
            self._seen = self._removed = 0
            self._judge(ratio, options)

    def _judge(self, ratio: float, options: DatasetOptions) -> None:
        text = f"{self._name} removed {ratio:.1%} of the last {_WINDOW} elements"
        bound = options.filter_raise_threshold_ratio
        if bound and ratio >= bound:
            raise ValueError(f"{text}: filter_raise_threshold_ratio is {bound}")
        bound = options.filter_warn_threshold_ratio
        if bound and ratio >= bound and self._may_warn():
            _log.warning(
                "%s: they are made and thrown away. DatasetOptions has the threshold (%s) from "
                "which this is said",
                text,
                bound,
            )

    def _may_warn(self) -> bool:
        now = time.monotonic()
        if now - _warned_at.get(self._name, -_QUIET_SECONDS) < _QUIET_SECONDS:
            return False
        _warned_at[self._name] = now
        return True
