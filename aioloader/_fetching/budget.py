"""The budget: how many retries and hedges there may be, so that an outage is no storm."""

from __future__ import annotations

import time
from typing import final

__all__ = ["Budget"]


@final
class Budget:
    """Tokens: some at first, a share of one with each success, and some with time.

    After the retry throttling of gRPC and Finagle's retry budget.

    >>> budget = Budget(burst=1, share=0.5, per_second=0.0)
    >>> budget.take(), budget.take()
    (True, False)
    >>> budget.earn(); budget.earn()
    >>> budget.take()
    True
    """

    __slots__ = ("_burst", "_per_second", "_share", "_since", "_tokens")

    def __init__(self, *, burst: float, share: float, per_second: float) -> None:
        self._burst = self._tokens = float(burst)
        self._share = share
        self._per_second = per_second
        self._since = time.monotonic()

    def earn(self) -> None:
        """Note a success."""
        self._tokens = min(self._tokens + self._share, self._burst)

    def take(self) -> bool:
        """Take one if there is one."""
        now = time.monotonic()
        self._tokens = min(self._tokens + (now - self._since) * self._per_second, self._burst)
        self._since = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
