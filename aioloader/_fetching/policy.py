"""The policy: how requests to something slow and unreliable are made, as one frozen value."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FetchPolicy"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPolicy:
    """How to fetch: how many at once, how long to wait, what to try again, and how often.

    The same for every source and, by `Fetch`, for any coroutine function::

        policy = FetchPolicy(concurrency=256, hedge_quantile=0.95)
        source = ObjectStoreSource("s3://bucket/images/", policy=policy)
        async with Loader(decode, group, fetch=Fetch(download, policy)) as loader: ...

    Args:
        concurrency: How many requests are in flight at most, on one event loop. Hedges come
            on top, at most a tenth more.
        adaptive: Whether to begin with fewer, and to follow the rate that the store sustains:
            more while requests are no slower for it, fewer when they are, or when the store
            says that it is too much (after the gradient limiter of Netflix's
            concurrency-limits). ``concurrency`` remains the most.
        attempt_timeout: Seconds until one request is given up, and tried again; None never.
        item_timeout: Seconds until an item is given up, all its requests and pauses together;
            None never.
        retries: How often a request is made again when its error may pass: a reset, a
            time-out, a short body, the statuses 408, 425, 429 and 500 to 599 but 501 and 505.
        backoff: The seconds to wait before the first retry, at most; doubled for each that
            follows, and drawn evenly below that (AWS's "full jitter"). A server's own
            ``Retry-After`` comes on top where it is longer.
        max_backoff: The most seconds between two attempts, unless the server asks for more.
        retry_budget: How many retries there may be for each item that was fetched, over time;
            ``concurrency`` of them are there at first, and can be saved up. An item that finds
            none left waits until there is one: ten come with each second, so that an outage
            meets a trickle of attempts, and no storm.
        hedge_quantile: Once a request takes longer than this share of the recent ones did, a
            second one is made, and the first answer counts (Dean and Barroso, "The tail at
            scale", 2013). 0.95 is usual. None never makes a second one.
        max_bytes: How many bytes of payloads a loader may hold that are fetched, or about to
            be, and not yet in their slots; one payload may always be. None has no bound.
        retry_on: Called with an error, tells whether it is worth another try, in place of the
            rules above.

    Raises:
        ValueError, TypeError: An argument is wrong; the message names it.

    >>> FetchPolicy(concurrency=256).concurrency
    256
    """

    concurrency: int = 64
    adaptive: bool = False
    attempt_timeout: float | None = 15.0
    item_timeout: float | None = 60.0
    retries: int = 5
    backoff: float = 0.1
    max_backoff: float = 5.0
    retry_budget: float = 0.5
    hedge_quantile: float | None = None
    max_bytes: int | None = 256 * 1024 * 1024
    retry_on: Callable[[BaseException], bool] | None = None

    def __post_init__(self) -> None:
        _whole("concurrency", self.concurrency, at_least=1)
        _whole("retries", self.retries, at_least=0)
        if self.max_bytes is not None:
            _whole("max_bytes", self.max_bytes, at_least=1)
        for name in ("attempt_timeout", "item_timeout"):
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), above=0)
        for name in ("backoff", "max_backoff", "retry_budget"):
            _number(name, getattr(self, name), at_least=0)
        if self.hedge_quantile is not None:
            _number("hedge_quantile", self.hedge_quantile, above=0, below=1)
        if self.retry_on is not None and not callable(self.retry_on):
            raise TypeError(f"retry_on={self.retry_on!r} must be a function or None")
        object.__setattr__(self, "adaptive", bool(self.adaptive))

    def __repr__(self) -> str:
        changed = (
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if getattr(self, f.name) != f.default
        )
        return f"FetchPolicy({', '.join(changed)})"


def _whole(name: str, value: Any, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} must be a whole number")
    if value < at_least:
        raise ValueError(f"{name}={value!r} must be {at_least} at least")


def _number(
    name: str,
    value: Any,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} must be a number")
    if not (value >= at_least and above < value < below):
        bounds = [f"at least {at_least:g}"] * (at_least > -math.inf)
        bounds += [f"above {above:g}"] * (above > -math.inf)
        bounds += [f"below {below:g}"] * (below < math.inf) or ["finite"]
        raise ValueError(f"{name}={value!r} must be {' and '.join(bounds)}")
