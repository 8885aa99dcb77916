"""Choosing: the executor that a kind of work asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aioloader._executors.coroutines import CoroutineExecutor
from aioloader._executors.process import ProcessExecutor
from aioloader._executors.recipes import is_coroutine_function
from aioloader._executors.threads import ThreadExecutor

if TYPE_CHECKING:
    from aioloader.protocols import Executor, Work

__all__ = ["choose_executor"]


def choose_executor(work: Work) -> Executor:
    """Return the executor for ``work``: coroutines, a thread, or worker processes."""
    if is_coroutine_function(work.load):
        return CoroutineExecutor(work)
    if work.num_workers == 0:
        return ThreadExecutor(work)
    return ProcessExecutor(work)
