"""Later: coroutines that are made when they are first awaited."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, final

__all__ = ["later"]


def later(function: Callable[..., Awaitable[None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    """Return ``function`` such that what it returns exists only once somebody awaits it.

    For tasks of task groups, that anybody may cancel before they take their first step, as
    ``asyncio.run`` does at its end. A coroutine that was never awaited would then be warned of.
    """

    def make(*args: Any) -> Coroutine[Any, Any, None]:
        return _Later(function, args)

    make.__qualname__ = getattr(function, "__qualname__", repr(function))
    return make


async def _run(function: Callable[..., Awaitable[None]], args: tuple[Any, ...]) -> None:
    try:
        await function(*args)
    except BaseException as error:
        # Those who note the end of the task may keep the cancellation in a circle of references,
        # and with it all frames: what they refer to would keep a slot on loan.
        traceback.clear_frames(error.__traceback__)
        raise


@final
class _Later(Coroutine[Any, Any, None]):
    """Good for one `await`; the other methods are those of a coroutine that has not begun."""

    def __init__(self, function: Callable[..., Awaitable[None]], args: tuple[Any, ...]) -> None:
        self._function = function
        self._args = args

    def __await__(self) -> Generator[Any, Any, None]:
        return _run(self._function, self._args).__await__()

    def send(self, value: Any) -> Any:
        raise RuntimeError("await it")

    def throw(self, *error: Any) -> Any:
        raise error[0]

    def close(self) -> None:
        return None
