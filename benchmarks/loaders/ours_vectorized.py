"""aioloader, with a function that fills a run of rows in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.loaders import ours

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from benchmarks.loaders import Work

PACKAGES = ours.PACKAGES


def epoch(work: Work) -> AbstractAsyncContextManager[Any]:
    """Open one epoch."""
    return ours.epoch(work, load=work.fill_many, vectorized=True)
