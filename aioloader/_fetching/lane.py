"""The lane: what a fetch has on one event loop, where it may be used on several."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, final

import anyio

from aioloader._fetching.budget import Budget
from aioloader._fetching.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Hashable

    from aioloader._fetching.policy import FetchPolicy
    from aioloader.errors import FetchError

__all__ = ["Flight", "Lane"]

_HEDGE_SHARE = 0.1
_RETRIES_PER_SECOND = 10.0


@final
class Flight:
    """An item being fetched, and what came of it, for whoever else asks meanwhile."""

    __slots__ = ("_landed", "error", "has_landed", "payload")

    def __init__(self) -> None:
        self.payload: Any = None
        self.error: FetchError | None = None
        self.has_landed = False
        self._landed: anyio.Event | None = None

    @property
    def is_awaited(self) -> bool:
        return self._landed is not None

    def landed(self) -> anyio.Event:
        if self._landed is None:
            self._landed = anyio.Event()
        return self._landed

    def land(self) -> None:
        if self._landed is not None:
            self._landed.set()


@final
class Lane:
    """What a fetch has on one event loop: its limits, and what is under way."""

    def __init__(self, policy: FetchPolicy) -> None:
        self.gate = Gate(policy.concurrency, adaptive=policy.adaptive)
        self.retries = Budget(
            burst=max(policy.concurrency, _RETRIES_PER_SECOND),
            share=policy.retry_budget,
            per_second=_RETRIES_PER_SECOND,
        )
        self.most_hedging = max(math.ceil(policy.concurrency * _HEDGE_SHARE), 1)
        self.hedges = Budget(burst=self.most_hedging, share=_HEDGE_SHARE, per_second=0.0)
        self.hedging = 0
        self.flights: dict[Hashable, Flight] = {}
        self.in_flight = 0
