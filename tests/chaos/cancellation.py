"""Cancellation: at every point where an epoch waits, in turn, on both loops."""

from __future__ import annotations

import asyncio
import contextlib
import types
from typing import TYPE_CHECKING, Any

import cloudpickle
import uvloop
from support import digest_of

from aioloader import DataGroup, Loader
from aioloader.testing import no_leaks

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator
from chaos import consuming
from chaos.consuming import ARRAYS, load, load_on_loop

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
KINDS: dict[str, dict[str, Any]] = {
    "processes": {"num_workers": 2},
    "thread": {"num_workers": 0},
    "coroutine": {"load": load_on_loop},
    "fetch": {"fetch": consuming.fetch},
}
BATCHES = 6


class Counted:
    """Awaits a coroutine, counts where it waits, and at wait number ``at`` calls ``strike``."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int, strike: Any) -> None:
        self._coroutine, self._at, self._strike = coroutine, at, strike
        self.waits = 0

    @types.coroutine
    def run(self) -> Generator[Any, Any, Any]:
        """Run it."""
        value, error = None, None
        while True:
            try:
                step = self._coroutine.throw(error) if error else self._coroutine.send(value)
            except StopIteration as stop:
                return stop.value
            self.waits += 1
            if self.waits == self._at:
                asyncio.get_running_loop().call_soon(self._strike)
            value = error = None
            try:
                value = yield step
            except BaseException as raised:
                error = raised


def make(kind: str) -> Loader[int]:
    """Return a loader of one epoch of a few batches."""
    group = DataGroup(4, range(4 * BATCHES), loader_arrays=ARRAYS, shuffle_later="itemwise")
    options = {"load": load, **KINDS[kind]}
    function = options.pop("load")
    return Loader(function, group, depth=3, end_at=("epoch", 1), **options)


async def plainly(kind: str, seen: list[str]) -> None:
    """Run an epoch."""
    async with make(kind) as loader:
        async for batch in loader:
            seen.append(digest_of(batch))
            del batch


async def program_cancelled(kind: str, at: int, seen: list[str], *, everything: bool) -> bool:
    """Cancel the task that runs the epoch, or every task there is, at one of its waits."""

    def strike() -> None:
        for other in asyncio.all_tasks() if everything else {task}:
            if other is not main:
                other.cancel()

    counted = Counted(plainly(kind, seen), at, strike)
    main = asyncio.current_task()
    task = asyncio.ensure_future(_awaited(counted))
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
    return counted.waits >= at


async def waits_cancelled(kind: str, at: int, seen: list[str]) -> bool:
    """Cancel each ``__anext__`` once, at one of its waits; then ask again."""
    cancelled = 0
    async with make(kind) as loader:
        while True:
            task = _cancelled_at(loader.__anext__(), at)
            await asyncio.wait([task])
            cancelled += task.cancelled()
            try:
                batch = await loader.__anext__() if task.cancelled() else task.result()
            except StopAsyncIteration:
                return cancelled > 0
            seen.append(digest_of(batch))
            del batch, task


def _cancelled_at(coroutine: Coroutine[Any, Any, Any], at: int) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.ensure_future(
        _awaited(Counted(coroutine, at, lambda: task.cancel()))
    )
    return task


async def _awaited(counted: Counted) -> Any:
    return await counted.run()


WAYS: dict[str, Any] = {
    "the program": lambda kind, at, seen: program_cancelled(kind, at, seen, everything=False),
    "every task": lambda kind, at, seen: program_cancelled(kind, at, seen, everything=True),
    "each __anext__": waits_cancelled,
}


def sweep(loop: str, kind: str, way: str, *, every: int = 1, first: int = 1) -> int:
    """Cancel at each wait in turn until there is none left; returns how many there were."""
    clean: list[str] = []
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(plainly(kind, clean))
    at, struck, count = first, True, 0
    while struck:
        seen: list[str] = []
        with no_leaks(), asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            struck = runner.run(WAYS[way](kind, at, seen))
        right = clean if way == "each __anext__" else clean[: len(seen)]
        assert seen == right, f"{way} cancelled at wait {at} on {loop}, {kind}: {seen} != {right}"
        at, count = at + every, count + struck
    return count


def main() -> int:
    """Sweep everything; returns how many sweeps went wrong."""
    with contextlib.suppress(ValueError):
        cloudpickle.register_pickle_by_value(consuming)
    wrong = 0
    for kind in KINDS:
        for way in WAYS:
            for loop in LOOPS:
                try:
                    print(f"{kind:10s} {way:15s} {loop:8s}", sweep(loop, kind, way), "waits, right")
                except AssertionError as error:
                    wrong += 1
                    print(f"{kind:10s} {way:15s} {loop:8s} WRONG: {error}")
    return wrong
