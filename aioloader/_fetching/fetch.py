"""The fetch: a coroutine function under a policy; what loaders and sources call."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import random
import time
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, final
from weakref import WeakKeyDictionary

import anyio

from aioloader._fetching.deadline import Deadline
from aioloader._fetching.hedging import hedged
from aioloader._fetching.judging import Judgement, judge
from aioloader._fetching.lane import Flight, Lane
from aioloader._fetching.payloads import payload_bytes
from aioloader._fetching.policy import FetchPolicy
from aioloader._fetching.redacting import is_clean, redact
from aioloader._fetching.statistics import Counts, FetchStatistics
from aioloader.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

__all__ = ["Fetch"]

K = TypeVar("K")
P = TypeVar("P")

_HEDGE_SAMPLES = 20


@final
class Fetch(Generic[K, P]):
    """A coroutine function ``function(item)`` under a `FetchPolicy`; itself one, too.

    Calls for equal items that are under way at once share one request. It may be used by
    several loaders, tasks and event loops; limits hold for each loop. It owns nothing, and
    pickles with its function.

    >>> async def double(number):
    ...     return 2 * number
    >>> fetch = Fetch(double, FetchPolicy(concurrency=8))
    >>> asyncio.run(fetch(21)), fetch.statistics().requests
    (42, 1)

    Args:
        function: Makes one attempt. It need not retry, nor time out; where its client
            retries by itself, switch that off.
        policy: How often, how long and how many at once.
        name: Returns what messages call an item; its ``repr``, without credentials of URLs.
        local: Returns what is at hand of an item, or None; asked first, beyond all limits.

    Raises:
        TypeError: ``function`` is no coroutine function, or ``policy`` no `FetchPolicy`.
    """

    def __init__(
        self,
        function: Callable[[K], Awaitable[P]],
        policy: FetchPolicy | None = None,
        *,
        name: Callable[[K], str] = repr,
        local: Callable[[K], Awaitable[P | None]] | None = None,
    ) -> None:
        if not _is_coroutine_function(function):
            raise TypeError(f"function={function!r} must be a coroutine function (`async def`)")
        if policy is not None and not isinstance(policy, FetchPolicy):
            raise TypeError(f"policy={policy!r} must be a FetchPolicy")
        self._function = function
        self.policy = policy or FetchPolicy()
        self._name = name
        self._local = local
        self._is_paired = False
        self.counts = Counts()
        self._lanes: WeakKeyDictionary[asyncio.AbstractEventLoop, Lane] = WeakKeyDictionary()

    def paired(self) -> Fetch[K, tuple[K, P]]:
        """Return the same under the same limits, whose payloads are ``(item, payload)``.

        For a loader whose ``load`` has to know which item it is that it loads.

        >>> async def double(number):
        ...     return 2 * number
        >>> asyncio.run(Fetch(double).paired()(21))
        (21, 42)
        """
        pair: Fetch[K, Any] = copy.copy(self)
        pair._is_paired = True
        return pair

    def __copy__(self) -> Fetch[K, P]:
        other: Fetch[K, P] = Fetch.__new__(Fetch)
        other.__dict__.update(self.__dict__)
        return other

    def __repr__(self) -> str:
        name = getattr(self._function, "__qualname__", type(self._function).__qualname__)
        figures = self.statistics()
        return f"<Fetch of {name}: {figures.in_flight} in flight, {figures.fetched} fetched>"

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self._function, self.policy, self._name, self._local, self._is_paired)
        return _rebuild, arguments

    async def __call__(self, item: K) -> P:
        """Fetch ``item``; raises `FetchError` when that is given up."""
        if self._is_paired:
            return item, await self._share(item)  # type: ignore[return-value]
        return await self._share(item)

    async def _share(self, item: K) -> P:
        lane = self._lane()
        key: Hashable = item
        try:
            flight = lane.flights.get(key)
        except TypeError:  # such items cannot be told apart
            return await self._fetch(lane, item)
        while flight is not None:
            await flight.landed().wait()
            if flight.error is not None:
                raise FetchError.again(flight.error)
            if flight.has_landed:
                self.counts.shared += 1
                payload: P = flight.payload
                return payload
            flight = lane.flights.get(key)  # who fetched it was cancelled; somebody else may
        return await self._lead(lane, key, item)

    def statistics(self) -> FetchStatistics:
        """Return a snapshot of what has been done, on all event loops together."""
        lanes = list(self._lanes.values())
        in_flight = sum(lane.in_flight for lane in lanes)
        limit = max((lane.gate.limit for lane in lanes), default=self.policy.concurrency)
        return self.counts.snapshot(in_flight, limit)

    def _lane(self) -> Lane:
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(loop)
        if lane is None:
            lane = self._lanes[loop] = Lane(self.policy)
        return lane

    async def _lead(self, lane: Lane, key: Hashable, item: K) -> P:
        flight = lane.flights[key] = Flight()
        try:
            flight.payload = payload = await self._fetch(lane, item)
            flight.has_landed = True
        except FetchError as error:
            flight.error = error if flight.is_awaited else None
            raise
        else:
            return payload
        finally:
            del lane.flights[key]
            flight.land()

    async def _fetch(self, lane: Lane, item: K) -> P:
        if self._local is not None and (kept := await self._local(item)) is not None:
            self.counts.local += 1
            return kept
        await lane.gate.enter()
        started = time.monotonic()
        run = _Run(self, lane, item, started)
        try:
            while (payload := await run.attempt()) is _FAILED:
                lane.gate.leave()
                run.entered = False
                await run.pause()
                await run.enter()
        finally:
            if run.entered:
                lane.gate.leave()
        self.counts.fetched += 1
        self.counts.bytes += payload_bytes(payload)
        lane.retries.earn()
        lane.hedges.earn()
        return payload  # type: ignore[no-any-return]

    async def request(self, lane: Lane, item: K) -> P:
        """Make one request."""
        self.counts.requests += 1
        lane.in_flight += 1
        try:
            return await self._function(item)
        finally:
            lane.in_flight -= 1

    def describe(self, item: K) -> str:
        """Name an item as messages do."""
        text = redact(self._name(item))
        return text if len(text) <= 200 else f"{text[:197]}..."


_FAILED: Any = object()


@final
class _Run:
    """One item's attempts, one after another."""

    __slots__ = (
        "_attempts",
        "_deadline",
        "_error",
        "_fetch",
        "_is_hedging",
        "_item",
        "_judgement",
        "_lane",
        "_policy",
        "_started",
        "entered",
    )

    def __init__(self, fetch: Fetch[Any, Any], lane: Lane, item: Any, started: float) -> None:
        self._fetch = fetch
        self._policy = fetch.policy
        self._lane = lane
        self._item = item
        self._started = started
        limit = self._policy.item_timeout
        self._deadline = None if limit is None else started + limit
        self._attempts = 0
        self._error: BaseException | None = None
        self._judgement = Judgement(passes=True)
        self._is_hedging = False
        self.entered = True

    async def attempt(self) -> Any:
        """Make one; returns the payload, or ``_FAILED`` where another is to follow."""
        counts, started = self._fetch.counts, time.monotonic()
        self._attempts += 1
        seconds = self._seconds()
        payload: Any = _FAILED
        failure: Exception | None = None
        try:
            with Deadline(seconds) as deadline:
                payload = await self._request()
            if payload is _FAILED and deadline.has_passed:
                counts.timeouts += 1
                failure = TimeoutError(f"no answer within {seconds:.3g} s")
        except Exception as error:
            failure = error
        self._error = failure
        del failure  # an error that its own frame refers to is freed late
        if self._error is not None:
            self._refused(self._error)
            return _FAILED
        elapsed = time.monotonic() - started
        counts.latency.add(elapsed)
        self._lane.gate.succeeded(elapsed)
        return payload

    async def pause(self) -> None:
        """Wait before the next attempt; raises FetchError where there is no time for one."""
        policy = self._policy
        pause = min(policy.backoff * 2.0 ** min(self._attempts - 1, 64), policy.max_backoff)
        pause = max(random.uniform(0.0, pause), self._judgement.retry_after)
        limit = f"item_timeout={policy.item_timeout or 0:g} s"
        spare = None if self._deadline is None else self._deadline - time.monotonic() - pause
        if spare is not None and spare <= 0:
            self._give_up(f"{limit} leaves no time for another")
        with anyio.move_on_after(spare) as scope:
            await self._lane.retries.wait()
        if scope.cancelled_caught:
            self._give_up(f"{limit} ended while retry_budget was used up")
        self._fetch.counts.retries += 1
        await anyio.sleep(pause)

    async def enter(self) -> None:
        """Take room for the next attempt."""
        remaining = None if self._deadline is None else self._deadline - time.monotonic()
        with anyio.move_on_after(remaining):
            await self._lane.gate.enter()
            self.entered = True
        if not self.entered:
            self._give_up(f"item_timeout={self._policy.item_timeout:g} s ended before another")

    def _seconds(self) -> float | None:
        limits = [] if self._policy.attempt_timeout is None else [self._policy.attempt_timeout]
        if self._deadline is not None:
            limits.append(max(self._deadline - time.monotonic(), 1e-3))
        return min(limits, default=None)

    async def _request(self) -> Any:
        fetch, lane, latency = self._fetch, self._lane, self._fetch.counts.latency
        quantile = self._policy.hedge_quantile
        if quantile is None or len(latency) < _HEDGE_SAMPLES:
            return await fetch.request(lane, self._item)
        try:
            payload, by_hedge = await hedged(
                lambda: fetch.request(lane, self._item), latency.quantile(quantile), self._may_hedge
            )
        finally:
            lane.hedging -= self._is_hedging
            self._is_hedging = False
        fetch.counts.hedges_won += by_hedge
        return payload

    def _may_hedge(self) -> bool:
        lane = self._lane
        if lane.hedging >= lane.most_hedging or not lane.hedges.take():
            return False
        self._is_hedging = True
        lane.hedging += 1
        self._fetch.counts.hedges += 1
        return True

    def _refused(self, error: Exception) -> None:
        policy = self._policy
        if isinstance(error, FetchError):  # of a request that has a policy itself
            self._attempts, self._error = error.attempts, error.__cause__
            self._fail(f"{error.key}: {error.reason}")
        judgement = judge(error)
        if policy.retry_on is not None:
            passes = bool(policy.retry_on(error))
            judgement = Judgement(passes, judgement.throttled, judgement.retry_after)
        if judgement.throttled:
            self._fetch.counts.throttled += 1
            self._lane.gate.throttled()
        self._judgement = judgement
        if not judgement.passes:
            self._give_up("such an error stays")
        if self._attempts > policy.retries:
            self._give_up(f"retries={policy.retries} are used up")

    def _give_up(self, why: str) -> NoReturn:
        error = self._error
        assert error is not None
        text = redact(str(error))
        kind = type(error).__name__
        del error
        self._fail(f"{kind}: {text} ({why})" if text else f"{kind} ({why})")

    def _fail(self, reason: str) -> NoReturn:
        self._fetch.counts.failed += 1
        error, self._error = self._error, None
        name, seconds = self._fetch.describe(self._item), time.monotonic() - self._started
        try:
            raise FetchError(name, self._attempts, seconds, reason) from (
                error if error is not None and is_clean(error) else None
            )
        finally:
            del error


def _is_coroutine_function(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    called = getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def _rebuild(
    function: Any, policy: FetchPolicy, name: Any, local: Any, is_paired: bool
) -> Fetch[Any, Any]:
    fetch: Fetch[Any, Any] = Fetch(function, policy, name=name, local=local)
    return fetch.paired() if is_paired else fetch
