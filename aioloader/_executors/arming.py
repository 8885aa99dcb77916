"""Arming: a function of this process with the points of faults around it.

Apart from the points themselves, so that worker processes start without asyncio.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from aioloader._faults import Trigger, armed, scribble, strike

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

__all__ = ["arm"]


def arm(
    function: Callable[..., Any], kind: Literal["load", "coroutine", "fetch"]
) -> Callable[..., Any]:
    """Return a ``load`` or ``fetch`` of this process with its points around it, if need be."""
    plan = armed()
    if not plan:
        return function
    trigger = Trigger(plan)
    if kind == "load":
        return trigger.wrap(function)
    return (_coroutine if kind == "coroutine" else _fetch)(trigger, function)


def _coroutine(trigger: Trigger, load: Callable[..., Any]) -> Callable[..., Any]:
    async def faulty(item: Any, arrays: Mapping[str, np.ndarray], seed: Any) -> Any:
        await _visit(trigger, "before_write")
        scribble(arrays)
        await _visit(trigger, "mid_row")
        returned = await load(item, arrays, seed)
        await _visit(trigger, "written")
        return returned

    return faulty


def _fetch(trigger: Trigger, fetch: Callable[..., Any]) -> Callable[..., Any]:
    async def faulty(item: Any) -> Any:
        await _visit(trigger, "fetch")
        return await fetch(item)

    return faulty


async def _visit(trigger: Trigger, point: str) -> None:
    for fault in trigger.due(point):
        await asyncio.sleep(strike(fault))
