"""Options: a loader's arguments, checked at once and by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aioloader._executors.recipes import is_coroutine_function
from aioloader._order.arguments import whole_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioloader.protocols import Work

__all__ = ["check_options"]


def check_options(
    work: Work,
    fetch: Callable[..., Any] | None,
    place: object,
    depth: int,
    timeout: float | None,
    on_error: str,
    executor: Callable[..., Any] | None,
) -> None:
    """Raise ValueError or TypeError, naming the parameter and its value."""
    _function("load", work.load)
    _function("startup", work.startup, optional=True)
    _function("executor", executor, optional=True)
    if fetch is not None and not is_coroutine_function(fetch):
        raise TypeError(
            f"fetch={fetch!r} must be a coroutine function (`async def`); "
            "what blocks belongs into load"
        )
    if is_coroutine_function(place):
        raise TypeError(f"place={place!r} must be a plain function; it runs in a thread")
    if is_coroutine_function(work.startup) and not is_coroutine_function(work.load):
        raise TypeError(
            f"startup={work.startup!r} may be a coroutine function only where load is one"
        )
    whole_number("depth", depth, at_least=1)
    whole_number("num_workers", work.num_workers, at_least=0)
    whole_number("max_concurrency", work.max_concurrency, at_least=1)
    whole_number("retries", work.retries, at_least=0)
    whole_number("worker_nice", work.worker_nice, at_least=0, at_most=19)
    _seconds("timeout", timeout, zero=True)
    _seconds("item_timeout", work.item_timeout, zero=False)
    if on_error not in ("raise", "drop"):
        raise ValueError(f'on_error={on_error!r} must be "raise" or "drop"')


def _function(name: str, value: object, *, optional: bool = False) -> None:
    if not callable(value) and not (optional and value is None):
        raise TypeError(f"{name}={value!r} must be a function")


def _seconds(name: str, value: object, *, zero: bool) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r} must be a number of seconds or None")
    if not (value > 0 or (zero and value == 0)):
        raise ValueError(f"{name}={value!r} must be positive")
