"""Turns: what is asked for in one turn of an event loop, answered by calls that are shared."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final
from weakref import WeakKeyDictionary

import anyio

from aioloader.sources.flights import another

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence

__all__ = ["Call", "Turns"]


@final
@dataclass(frozen=True, slots=True)
class Call:
    """One call for several who ask.

    ``run`` makes it, ``parts`` are the numbers of the wants that it answers, and ``pick``
    takes one's answer, by its number, from what ``run`` returned.
    """

    run: Callable[[], Awaitable[Any]]
    parts: Sequence[int]
    pick: Callable[[Any, int], Any]


@final
class Turns:
    """Collects what tasks want in one turn of their loop, and has it planned together.

    A call ends early when nobody waits for any of its answers any more. Used by tasks of any
    number of event loops; owns nothing but the tasks of calls under way, each of which ends
    before the last who waits for it does.

    Args:
        plan: Called with a key and all that is wanted of it; returns the calls for that, each
            want in exactly one of them.
    """

    def __init__(self, plan: Callable[[Any, Sequence[Any]], Iterable[Call]]) -> None:
        self._plan = plan
        self._asks: WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Ask]]
        self._asks = WeakKeyDictionary()

    async def get(self, key: Hashable, wants: Sequence[Any]) -> list[Any]:
        """Return the answer to each want."""
        if not wants:
            return []
        loop = asyncio.get_running_loop()
        ask = _Ask(key, wants, loop.create_future())
        asks = self._asks.get(loop)
        if asks is None:
            asks = self._asks[loop] = []
        if not asks:
            loop.call_soon(self._dispatch, asks)
        asks.append(ask)
        try:
            await ask.landed
        finally:
            await ask.leave()
        return ask.answers

    def _dispatch(self, asks: list[_Ask]) -> None:
        by_key: dict[Hashable, list[_Ask]] = {}
        for ask in asks:
            if not ask.landed.done():  # or else it was cancelled in the same turn
                by_key.setdefault(ask.key, []).append(ask)
        asks.clear()
        for key, group in by_key.items():
            owners = [(ask, part) for ask in group for part in range(len(ask.wants))]
            try:
                calls = list(self._plan(key, [ask.wants[part] for ask, part in owners]))
            except Exception as error:
                for ask in group:
                    ask.fail(another(error))
                continue
            for call in calls:
                _Running(call, owners).begin()


@final
class _Ask:
    """What somebody waits for."""

    def __init__(self, key: Hashable, wants: Sequence[Any], landed: asyncio.Future[None]) -> None:
        self.key = key
        self.wants = wants
        self.landed = landed
        self.answers: list[Any] = [None] * len(wants)
        self.calls: list[_Running] = []
        self._missing = len(wants)

    def put(self, part: int, answer: Any) -> None:
        self.answers[part] = answer
        self._missing -= 1
        if not self._missing and not self.landed.done():
            self.landed.set_result(None)

    def fail(self, error: BaseException) -> None:
        if not self.landed.done():
            self.landed.set_exception(error)

    async def leave(self) -> None:
        """Wait for its calls no longer; those that nobody else waits for have ended then."""
        if self.landed.done() and not self.landed.cancelled():
            self.landed.exception()  # or asyncio complains, where who waits was cancelled then
        ending = [task for call in self.calls if (task := call.leave()) is not None]
        self.calls.clear()
        if ending:
            with anyio.CancelScope(shield=True):
                await asyncio.wait(ending)


@final
class _Running:
    """A call under way, and who waits for parts of it."""

    def __init__(self, call: Call, owners: Sequence[tuple[_Ask, int]]) -> None:
        self._call = call
        self._owners = [(number, *owners[number]) for number in call.parts]
        self._asks = list(dict.fromkeys(ask for _, ask, _ in self._owners))
        self._waiting = len(self._asks)
        self._task: asyncio.Task[None] | None = None
        for ask in self._asks:
            ask.calls.append(self)

    def begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run(), name="aioloader-shared-call")

    def leave(self) -> asyncio.Task[None] | None:
        """Count one who waits less; returns the task where it is cancelled for want of others."""
        self._waiting -= 1
        if self._waiting or self._task is None or self._task.done():
            return None
        self._task.cancel()
        return self._task

    async def _run(self) -> None:
        try:
            result = await self._call.run()
            for number, ask, part in self._owners:
                ask.put(part, self._call.pick(result, number))
        except Exception as error:
            for ask in self._asks:
                ask.fail(another(error))
