"""Providers that these tests share."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np

CONFIG = {"data_set": {"use_cache": True, "preload_cache": False}}
PRELOADING = {"data_set": {"use_cache": True, "preload_cache": True}}


class Provider:
    """Rows of whole numbers, loaded in threads, which wait for whatever is shut."""

    def __init__(self, length: int = 100, *, nbytes: int = 800) -> None:
        self.length = length
        self.shape = (nbytes // 8,)
        self.asked: list[int] = []
        self.failing: dict[int, BaseException] = {}
        self.shut: dict[int, threading.Event] = {}
        self.threads: set[int] = set()
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.length

    def shut_row(self, index: int) -> threading.Event:
        """Have loads of a row wait for the event that is returned."""
        return self.shut.setdefault(index, threading.Event())

    def begin(self, index: int) -> None:
        with self._lock:
            self.asked.append(index)
            self.threads.add(threading.get_ident())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)

    def end(self, index: int) -> dict[str, Any]:
        with self._lock:
            self.at_once -= 1
        if index in self.failing:
            raise self.failing[index]
        return {"data": {"x": np.full(self.shape, index), "id": str(index)}}

    def resolve_data(self, index: int) -> dict[str, Any]:
        self.begin(index)
        if index in self.shut:
            assert self.shut[index].wait(30)
        return self.end(index)


class AsyncProvider(Provider):
    """The same on the event loop."""

    def __init__(self, length: int = 100, **options: Any) -> None:
        super().__init__(length, **options)
        self.cancelled: list[int] = []

    async def resolve_data(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        self.begin(index)
        try:
            await asyncio.sleep(0)
            while index in self.shut and not self.shut[index].is_set():
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancelled.append(index)
            self.end(index)
            raise
        return self.end(index)


def number(row: Any) -> int:
    """Return which row it is."""
    return int(row["data"]["x"][0])
