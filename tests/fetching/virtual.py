"""Virtual time: a loop whose clock jumps to the next timer once there is nothing else to do."""

from __future__ import annotations

import asyncio
import selectors
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from aioloader._fetching import budget, fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import pytest


class Jumping(selectors.DefaultSelector):
    """Never waits: the time goes on instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        """Return what is ready."""
        ready = super().select(0)
        assert ready or timeout is not None, "nothing will ever happen again"
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose seconds take no time."""

    def __init__(self) -> None:
        self._clock = Jumping()
        super().__init__(self._clock)

    def time(self) -> float:
        """Return the virtual time."""
        return self._clock.now


class Virtually:
    """Runs coroutines in virtual time; ``now`` are the seconds since it was last begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._loop: VirtualLoop | None = None
        self._began = 0.0

    @property
    def now(self) -> float:
        """The seconds that have passed."""
        return 0.0 if self._loop is None else self._loop.time() - self._began

    def run(self, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run a coroutine function to its end."""
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            self._loop = runner.get_loop()  # type: ignore[assignment]
            clock = SimpleNamespace(monotonic=self._loop.time)
            for module in (budget, fetch):
                self._monkeypatch.setattr(module, "time", clock)
            self._began = self._loop.time()
            return runner.run(main())
