"""aioloader, with threads of the program in place of worker processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aioloader import ThreadExecutor
from benchmarks.loaders import ours

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from benchmarks.loaders import Work

PACKAGES = ours.PACKAGES


def epoch(work: Work) -> AbstractAsyncContextManager[Any]:
    """Open one epoch."""
    return ours.epoch(work, executor=ThreadExecutor)
