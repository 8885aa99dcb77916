"""Driving: one element after the other, for `next` and for `anext`, from one `_advance`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from aioloader._datasets.hosts import Host, lent_loop
from aioloader._datasets.requests import Bell
from aioloader._iterating import refuse_in_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from aioloader._datasets.requests import Request

__all__ = ["Driver"]

_TURN_SECONDS = 0.001
_TURN_ELEMENTS = 512
_HURRY_SECONDS = 0.001


@final
@dataclass(slots=True)
class _Outcome:
    """What one call of `_advance` came to, and the position behind it."""

    element: Any = None
    error: BaseException | None = None
    is_last: bool = False
    state: dict[str, Any] | None = None


@final
class _Turn:
    """Some elements in a row, made by the host's thread, and taken while it goes on.

    ``bell`` rings when it is over, and for outcomes before that only where somebody is in a
    hurry: to wake the loop for each would take longer than making most of them.
    """

    def __init__(self) -> None:
        self.bell = Bell()
        self.outcomes: deque[_Outcome] = deque()
        self.is_over = False
        self._is_urgent = False

    def put(self, outcome: _Outcome) -> None:
        """Add an outcome, in the thread."""
        self.outcomes.append(outcome)
        if self._is_urgent:
            self.bell.ring()

    def hurry(self) -> None:
        """Have it ring for outcomes, too, from those on that are there already."""
        self._is_urgent = True
        if self.outcomes:
            self.bell.ring()

    async def wait(self) -> None:
        """Wait until it is over, or a moment and for an outcome."""
        self._is_urgent = False
        timer = asyncio.get_running_loop().call_later(_HURRY_SECONDS, self.hurry)
        try:
            await self.bell.wait()
        finally:
            timer.cancel()

    def end(self) -> None:
        """Say that nothing more will be put."""
        self.is_over = True
        self.bell.ring()


@final
class Driver:
    """Drives an iterator that a program iterates over; iterators below it need none.

    `_advance` is a coroutine of which only awaits of requests suspend. `next` runs it in the
    calling thread, and blocks where it suspends. `anext` runs it on the loop, if it is safe
    there, and otherwise in a thread, for about a millisecond at a time: what that makes
    beyond the one element lies ready, each with the position behind it, and `get_state` is
    always that of the last delivered one. A coroutine that has been suspended when a wait was
    cancelled or interrupted is kept, and the next call goes on with it.

    The driver does not refer to its iterator, which is handed to each method: it would
    otherwise be collected late.
    """

    def __init__(self) -> None:
        self._host = Host()
        self._plain = False  # whether `next` has nothing to look after
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._request: Request | None = None
        self._answer: tuple[Any, Exception | None] = (None, None)
        self._turn: _Turn | None = None
        self._restoring: Callable[[], None] | None = None
        self._delivered: dict[str, Any] | None = None
        self._looking: int | None = None
        self._breath = 0.0

    # Positions

    def position(self) -> dict[str, Any] | None:
        """Return the state behind the last delivered element; None says that it is the tree's."""
        if self._delivered is None or self._looking == threading.get_ident():
            return None
        return self._delivered

    def restore(self, state: dict[str, Any], apply: Callable[[], None]) -> None:
        """Go to ``state`` by ``apply``: now, or when the thread has left the iterator alone."""
        self._plain = False
        if self._turn is not None and not self._turn.is_over:
            self._restoring, self._delivered = apply, state
            return
        self._turn = None
        self._forget()
        apply()

    def close(self) -> None:
        """Let go of everything, without waiting."""
        self._plain = False
        if self._turn is None or self._turn.is_over:
            delivered, self._turn = self._delivered, None
            self._forget()
            self._delivered = delivered
        self._host.close()

    async def left(self, seconds: float) -> None:
        """Wait until no thread is inside of the iterator any more, and at most so long."""
        turn = self._turn
        if turn is not None and not turn.is_over:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while not turn.is_over:
                        await turn.bell.wait()

    def start(self, iterator: Any) -> None:
        """Have what works ahead begin to, on the running loop or on one of the host's own."""
        _refuse_closed(iterator)
        self._plain = False
        if self._turn is None:
            try:
                self._use(iterator, asyncio.get_running_loop())
            except RuntimeError:
                self._use(iterator, lent_loop())
            iterator._start(self._host.loop)

    def _forget(self) -> None:
        self._coroutine = self._request = self._delivered = None
        self._answer = (None, None)

    def _state_of(self, iterator: Any) -> dict[str, Any]:
        self._looking = threading.get_ident()
        try:
            return iterator.get_state()  # type: ignore[no-any-return]
        finally:
            self._looking = None

    def _settle(self, iterator: Any) -> None:
        if self._coroutine is None and self._turn is None:
            self._delivered = None
            self._plain = not iterator._waits and not iterator._closed

    def _use(self, iterator: Any, loop: asyncio.AbstractEventLoop | None) -> None:
        self._host.use(loop)
        if iterator._is_async and self._host.has_moved:
            # What is under way belongs to another loop: it is made again on this one.
            state = self._state_of(iterator) if self._delivered is None else self._delivered
            self._host.close()
            iterator.set_state(state)

    # Plain iteration

    def next(self, iterator: Any) -> Any:
        """Return the next element, in this thread."""
        if not self._plain:
            return self._next_with_care(iterator)
        advancing = iterator._advance()
        try:
            request = advancing.send(None)
        except StopIteration as done:
            return done.value
        except StopAsyncIteration:
            raise StopIteration from None
        self._coroutine, self._request = advancing, request
        return self._next_with_care(iterator)

    def _next_with_care(self, iterator: Any) -> Any:
        _refuse_closed(iterator)
        if iterator._is_async:
            refuse_in_loop("async for ... in ...")
        self._use(iterator, lent_loop())
        while self._turn is not None:
            taken = self._taken()
            if taken is not None:
                return self._deliver(iterator, taken, StopIteration)
            if self._turn is not None:
                self._turn.hurry()
                self._turn.bell.block()
        if self._coroutine is None and iterator._waits:
            self._delivered = self._state_of(iterator)  # an interruption may come out of a wait
        outcome = self._run(iterator, may_block=True)
        assert outcome is not None  # for it would have blocked
        if isinstance(outcome.error, KeyboardInterrupt) and self._delivered is not None:
            # It came between waits, and what it ended had perhaps taken some elements already.
            iterator.set_state(self._delivered)
        self._settle(iterator)
        return self._unwrap(outcome, StopIteration)

    def _run(self, iterator: Any, *, may_block: bool) -> _Outcome | None:
        """Go on to the next outcome, in a thread; None if it has to be waited for."""
        self._look_again(iterator)
        while True:
            request = self._request
            if request is not None:
                if request.may_wait and not may_block:
                    return None
                try:
                    self._answer = request.block(self._host), None
                except Exception as error:
                    self._answer = None, error
                self._request = None
            outcome = self._resume()
            if outcome is not None:
                return outcome

    def _look_again(self, iterator: Any) -> None:
        if self._coroutine is None:
            self._coroutine = iterator._advance()
        elif isinstance(self._request, Bell):
            # An interruption may have come just after the bell had rung, which it does only once.
            # Who waits for a bell looks at what it was rung for, and waits on if need be.
            self._request = None

    def _resume(self) -> _Outcome | None:
        """Run the coroutine to its next request, or to its outcome."""
        (value, error), self._answer = self._answer, (None, None)
        assert self._coroutine is not None
        try:
            if error is None:
                self._request = self._coroutine.send(value)
            else:
                self._request = self._coroutine.throw(error)
        except BaseException as raised:
            self._coroutine = None
            return _outcome_of(raised)
        finally:
            del error  # it refers to this frame
        return None

    # Iteration on a loop

    async def anext(self, iterator: Any) -> Any:
        """Return the next element, without blocking the loop."""
        _refuse_closed(iterator)
        await self._breathe()
        self._plain = False
        while True:
            self._use(iterator, asyncio.get_running_loop())
            taken = None if self._turn is None else self._taken()
            if taken is not None:
                return self._deliver(iterator, taken, StopAsyncIteration)
            if self._turn is not None:
                await self._turn.wait()
                continue
            if self._delivered is None:
                self._delivered = self._state_of(iterator)
            if iterator._loop_safe:
                outcome = await self._run_here(iterator)
                self._settle(iterator)
                return self._unwrap(outcome, StopAsyncIteration)
            if self._request is not None:
                await self._answered()
            self._turn = _Turn()
            self._host.submit(functools.partial(self._make, iterator, self._turn))

    async def _breathe(self) -> None:
        # Who never has to wait would keep others from the loop.
        if time.perf_counter() - self._breath > _TURN_SECONDS:
            await asyncio.sleep(0)
            self._breath = time.perf_counter()

    async def _run_here(self, iterator: Any) -> _Outcome:
        self._look_again(iterator)
        while True:
            if self._request is not None:
                await self._breathe()
                await self._answered()
            outcome = self._resume()
            if outcome is not None:
                return outcome

    async def _answered(self) -> None:
        assert self._request is not None
        try:
            self._answer = await self._request.wait(self._host), None
        except Exception as error:
            self._answer = None, error
        self._request = None

    # Turns

    def _make(self, iterator: Any, turn: _Turn) -> None:
        try:
            with self._host.lending():
                self._make_some(iterator, turn)
        except BaseException as error:
            turn.put(_Outcome(error=error))
        finally:
            turn.end()

    def _make_some(self, iterator: Any, turn: _Turn) -> None:
        deadline = time.perf_counter() + _TURN_SECONDS
        for _ in range(_TURN_ELEMENTS):
            # The thread does not wait for what goes on elsewhere: a loop may end before that.
            outcome = self._run(iterator, may_block=False)
            if outcome is None:
                break
            outcome.state = self._state_of(iterator)
            turn.put(outcome)
            if outcome.is_last or outcome.error is not None or time.perf_counter() > deadline:
                break

    def _taken(self) -> _Outcome | None:
        """Take the next outcome of the turn, if it is there; forget a turn that has no more."""
        turn = self._turn
        assert turn is not None
        is_over = turn.is_over  # asked first: the thread puts, and then ends
        if self._restoring is None and turn.outcomes:
            return turn.outcomes.popleft()
        if is_over:
            self._turn = None
            restoring, self._restoring = self._restoring, None
            if restoring is not None:
                self._forget()
                restoring()
        return None

    # Delivery

    def _deliver(self, iterator: Any, outcome: _Outcome, end: type[Exception]) -> Any:
        self._delivered = outcome.state
        if self._turn is not None and self._turn.is_over and not self._turn.outcomes:
            self._turn = None
            self._settle(iterator)
        return self._unwrap(outcome, end)

    def _unwrap(self, outcome: _Outcome, end: type[Exception]) -> Any:
        if outcome.is_last:
            self._host.close()
            raise end
        if outcome.error is None:
            return outcome.element
        try:
            raise outcome.error
        finally:
            del outcome  # the error would refer to itself


def _refuse_closed(iterator: Any) -> None:
    if iterator._closed:
        raise ValueError("this iterator has been closed: make another with `iter(dataset)`")


def _outcome_of(raised: BaseException) -> _Outcome:
    if isinstance(raised, StopIteration):
        return _Outcome(raised.value)
    if isinstance(raised, StopAsyncIteration):
        return _Outcome(is_last=True)
    return _Outcome(error=raised)
