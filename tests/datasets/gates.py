"""Functions of elements that wait until they are let go, and count their calls."""

from __future__ import annotations

import asyncio
import threading


class Gate:
    """A function of elements that waits until it is opened, and counts its calls."""

    def __init__(self, *, opened: bool = False) -> None:
        self.calls: list[int] = []
        self.threads: set[str] = set()
        self.running = self.most = 0
        self._lock = threading.Lock()
        self._open = threading.Event()
        if opened:
            self._open.set()

    def open(self) -> None:
        self._open.set()

    def __call__(self, x: int) -> int:
        with self._lock:
            self.calls.append(x)
            self.threads.add(threading.current_thread().name)
            self.running += 1
            self.most = max(self.most, self.running)
        assert self._open.wait(30)
        with self._lock:
            self.running -= 1
        return x


class AsyncGate(Gate):
    """The same as a coroutine function."""

    def __init__(self) -> None:
        super().__init__()
        self.event: asyncio.Event | None = None

    def open(self) -> None:
        assert self.event is not None
        self.event.set()

    async def __call__(self, x: int) -> int:  # type: ignore[override]
        self.event = self.event or asyncio.Event()
        self.calls.append(x)
        self.threads.add(threading.current_thread().name)
        self.running += 1
        self.most = max(self.most, self.running)
        await self.event.wait()
        self.running -= 1
        return x
