"""The budget: how many retries and hedges there may be, so that an outage is no storm."""

from __future__ import annotations

import asyncio
import time
from typing import final

from aioloader._fetching.line import Line

__all__ = ["Budget"]


@final
class Budget:
    """Tokens: some at first, a share of one with each success, and some with time.

    After the retry throttling of gRPC and Finagle's retry budget. Those who wait for one get
    it first come first served; for one event loop.

    >>> budget = Budget(burst=1, share=0.5, per_second=0.0)
    >>> budget.take(), budget.take()
    (True, False)
    >>> budget.earn(); budget.earn()
    >>> budget.take()
    True
    """

    __slots__ = ("_burst", "_line", "_per_second", "_share", "_since", "_timer", "_tokens")

    def __init__(self, *, burst: float, share: float, per_second: float) -> None:
        self._burst = self._tokens = float(burst)
        self._share = share
        self._per_second = per_second
        self._since = time.monotonic()
        self._line = Line()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many wait for a token."""
        return len(self._line)

    def earn(self) -> None:
        """Note a success."""
        self._tokens = min(self._tokens + self._share, self._burst)
        if self._line:
            self._serve()

    def take(self) -> bool:
        """Take one if there is one that nobody waits for."""
        return not self._line and self._take()

    async def wait(self) -> None:
        """Take one as soon as there is one."""
        if self.take():
            return
        self._start_timer()
        try:
            await self._line.wait(self._give_back)
        finally:
            if not self._line and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _give_back(self) -> None:
        self._tokens += 1.0
        self._serve()

    def _take(self) -> bool:
        now = time.monotonic()
        self._tokens = min(self._tokens + (now - self._since) * self._per_second, self._burst)
        self._since = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _serve(self) -> None:
        while self._line and self._take():
            self._line.serve()
        if self._line:
            self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is None and self._per_second > 0:
            seconds = max((1.0 - self._tokens) / self._per_second, 1e-3)
            self._timer = asyncio.get_running_loop().call_later(seconds, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._serve()
