"""States: a position in a plan as a small JSON value, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aioloader._engine.progress import Progress
from aioloader.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aioloader._order.plan import Plan

__all__ = ["make_state", "parse_state"]

_VERSION = 1


def make_state(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Return the state: which plan, how far, and which batches beyond that are done."""
    return {
        "version": _VERSION,
        "plan": plan.fingerprint(),
        "batches_per_epoch": plan.batches_per_epoch,
        "batches_per_validation": plan.batches_per_validation,
        "position": progress.position,
        "ahead": f"{progress.ahead:x}",
    }


def parse_state(state: Mapping[str, Any], plan: Plan) -> Progress:
    """Return the progress that ``state`` describes, or raise what is wrong with it."""
    if not hasattr(state, "get") or state.get("version") != _VERSION:
        raise StateError(f"this is not a loader's state of version {_VERSION}: {state!r}")
    expected = make_state(plan, Progress(0))
    for key in ("batches_per_epoch", "batches_per_validation", "plan"):
        if state.get(key) != expected[key]:
            raise StateError(
                f"the state is of a loader with other groups, seeds, shuffling or validation: "
                f"its {key} is {state.get(key)!r}, and this loader's is {expected[key]!r}"
            )
    position, ahead = state.get("position"), state.get("ahead")
    try:
        if isinstance(position, bool) or not isinstance(position, int) or position < 0:
            raise ValueError
        if not isinstance(ahead, str) or (bits := int(ahead, 16)) < 0:
            raise ValueError
    except ValueError:
        raise StateError(f"the state is damaged: position={position!r}, ahead={ahead!r}") from None
    return Progress(position, bits)
