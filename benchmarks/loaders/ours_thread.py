"""aioloader, with a thread of the program in place of worker processes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.loaders import ours

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from benchmarks.loaders import Work

PACKAGES = ours.PACKAGES


def epoch(work: Work) -> AbstractAsyncContextManager[Any]:
    """Open one epoch."""
    return ours.epoch(replace(work, num_workers=0))
