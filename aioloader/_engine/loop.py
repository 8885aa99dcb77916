"""The loop: run a program on the fastest event loop there is."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_new_event_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
with contextlib.suppress(ImportError):  # Windows has none
    from uvloop import new_event_loop as _new_event_loop

__all__ = ["new_loop", "run"]

T = TypeVar("T")


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop of the fastest kind there is."""
    return (_new_event_loop or asyncio.new_event_loop)()


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """Run ``main`` to its end on uvloop where that is installed, on asyncio elsewhere.

    An ``asyncio.Runner`` underneath: no global loop or policy is set.

    >>> async def main():
    ...     return 42
    >>> run(main())
    42
    """
    if _is_running():
        main.close()
        raise RuntimeError("run() starts an event loop, and one is running here: await instead")
    with asyncio.Runner(debug=debug, loop_factory=_new_event_loop) as runner:
        return runner.run(main)


def _is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
