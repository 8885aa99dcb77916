"""Threads for files: daemons, so that a disk that never answers does not keep a program."""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import sys
import threading
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FileThreads"]

T = TypeVar("T")


@final
class FileThreads(Executor):
    """A few threads, started with their first call; one does what it is told in that order.

    The standard library's are joined when the interpreter ends, however long they take. With
    ``nice`` they leave a core to the event loop's thread when that wants one.
    """

    def __init__(self, count: int, name: str, *, nice: int = 0) -> None:
        self._count = count
        self._name = name
        self._nice = nice
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._started: list[threading.Thread] = []
        self._ended = False

    def submit(self, function: Callable[..., T], /, *args: Any, **options: Any) -> Future[T]:
        """Have a thread call ``function``."""
        if self._ended:
            raise RuntimeError(f"the threads {self._name!r} have been told to end")
        future: Future[T] = Future()
        self._calls.put(_Call(future, functools.partial(function, *args, **options)))
        if len(self._started) < self._count:
            name = f"{self._name}-{len(self._started) + 1}"
            arguments = (self._calls, self._nice)
            thread = threading.Thread(target=_serve, args=arguments, name=name, daemon=True)
            self._started.append(thread)
            thread.start()
        return future

    @property
    def are_alive(self) -> bool:
        """Whether any of them runs."""
        return any(thread.is_alive() for thread in self._started)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Have them end once they have done what they were told; never waits."""
        if not self._ended:
            self._ended = True
            for _ in self._started:
                self._calls.put(None)


@final
class _Call:
    """A function to call, and the future that gets what comes of it."""

    def __init__(self, future: Future[Any], function: Callable[[], Any]) -> None:
        self._future = future
        self._function = function

    def run(self) -> None:
        if not self._future.set_running_or_notify_cancel():
            return
        try:
            result = self._function()
        except BaseException as error:
            self._future.set_exception(error)
            del self  # or the error, which has this frame, would keep itself by the future
        else:
            self._future.set_result(result)


def _serve(calls: queue.SimpleQueue[_Call | None], nice: int) -> None:
    if nice and sys.platform == "linux":  # where a thread has a niceness of its own
        with contextlib.suppress(OSError):
            before = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), before + nice)
    while (call := calls.get()) is not None:
        call.run()
        del call  # what it refers to would be kept until the next one comes
