"""Fetching: the elements of a `MapDataset` in order, made by threads ahead of use."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, final

from aioloader._datasets.hosts import Hands
from aioloader._datasets.requests import Bell
from aioloader._datasets.room import Room

if TYPE_CHECKING:
    from aioloader._datasets.options import ReadOptions

__all__ = ["Failed", "Fetching"]

_RUN_SECONDS = 0.0005


@final
class Failed:
    """In the place of an element that raised."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


@final
class _Run:
    """Some elements in a row, made by one thread, and taken while it goes on."""

    __slots__ = ("elements", "indices", "seconds", "taken")

    def __init__(self, indices: range) -> None:
        self.indices = indices
        self.elements: list[Any] = []
        self.taken = 0
        self.seconds = 0.0


@final
class Fetching:
    """``dataset[i]`` for each of ``indices``.

    All bookkeeping is the consumer's: when it takes an element, it hands out runs of indices
    until as many elements are under way or ready as there is `Room` for. So threads share
    nothing but a queue, and an element costs the same however many are ready. Runs are as long
    as takes half a millisecond.
    """

    def __init__(self, dataset: Any, indices: range, options: ReadOptions) -> None:
        self.bell = Bell()
        self.stopped = False
        self._dataset = dataset
        self._rest = indices
        self._threads = options.num_threads
        self._hands = Hands(options.num_threads, "aioloader-read")
        self._room = Room(options)
        self._runs: deque[_Run] = deque()
        self._under_way = 0
        self._wanted: _Run | None = None
        self._element_seconds = _RUN_SECONDS
        self._hand_out()

    def __repr__(self) -> str:
        return f"<Fetching: {self._under_way} elements under way or ready>"

    def take(self) -> Any:
        """Take the next element, or a `Failed`; `bell` rings where this raises `IndexError`."""
        run = self._runs[0]
        try:
            element = run.elements[run.taken]
        except IndexError:
            self._wanted = run
            if len(run.elements) == run.taken:
                raise
            element = run.elements[run.taken]  # it came before it was known to be waited for
        run.elements[run.taken] = None
        run.taken += 1
        self._under_way -= 1
        self._room.measure(element)
        if run.taken == len(run.indices):
            self._runs.popleft()
            self._element_seconds += (run.seconds / run.taken - self._element_seconds) / 8
        if self._rest:
            self._hand_out()
        return element

    def stop(self) -> None:
        """Have the threads end, each after its element; does not wait for them."""
        self.stopped = True
        self._hands.close()
        self.bell.ring()

    @property
    def ended(self) -> bool:
        """Whether all threads have ended."""
        return self._hands.ended

    def _hand_out(self) -> None:
        limit = self._room.limit
        most = max(limit // (2 * self._threads), 1)
        size = min(max(int(_RUN_SECONDS / max(self._element_seconds, 1e-9)), 1), most)
        while self._rest and (self._under_way + size <= limit or not self._runs):
            run = _Run(self._rest[:size])
            self._rest = self._rest[size:]
            self._runs.append(run)
            self._under_way += len(run.indices)
            self._hands.submit(lambda run=run: self._make(run))  # type: ignore[misc]

    def _make(self, run: _Run) -> None:
        began = time.perf_counter()
        for index in run.indices:
            if self.stopped:
                return
            try:
                element = self._dataset[index]
            except BaseException as error:
                element = Failed(error)
            if index == run.indices[-1]:
                run.seconds = time.perf_counter() - began
            run.elements.append(element)
            del element
            if self._wanted is run:
                self._wanted = None
                self.bell.ring()
