"""Every exception that aioloader raises on its own account."""

from __future__ import annotations

__all__ = [
    "AioLoaderError",
    "BatchTimeoutError",
    "CacheCorrupt",
    "CacheMismatch",
    "FetchError",
    "ItemError",
    "LayoutError",
    "LoadError",
    "NotCached",
    "StateError",
    "WorkerDied",
]


class AioLoaderError(Exception):
    """The root of aioloader's exceptions."""


class LayoutError(AioLoaderError, ValueError):
    """Arrays do not have the names, shapes or dtypes that a layout declares."""


class StateError(AioLoaderError, ValueError):
    """A saved state is damaged, or belongs to a loader with other settings."""


class CacheMismatch(AioLoaderError, ValueError):
    """A cache was made under other settings than those it is opened with."""


class CacheCorrupt(AioLoaderError):
    """A cache entry is damaged and there is no way to load its rows again."""


class BatchTimeoutError(AioLoaderError, TimeoutError):
    """No batch became ready within ``timeout`` seconds.

    The message says what the loader was waiting for: slots that the program still
    holds (with the batches that hold them), or items that are still being loaded.
    Nothing is lost: asking for the next batch again goes on waiting.
    """


class FetchError(AioLoaderError):
    """An item could not be fetched, and was given up.

    ``key`` names the item, ``attempts`` is how often it was tried, in ``seconds`` altogether;
    ``reason`` says what the last attempt ended with, and why there is no other. Nothing of it
    holds credentials: ``__cause__`` is the last attempt's own error unless its text has some.
    """

    def __init__(self, key: str, attempts: int, seconds: float, reason: str) -> None:
        tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        super().__init__(f"{key} could not be fetched: {tries} in {seconds:.3g} s, last {reason}")
        self.key = key
        self.attempts = attempts
        self.seconds = seconds
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.key, self.attempts, self.seconds, self.reason)

    @classmethod
    def again(cls, error: FetchError) -> FetchError:
        """Return the same for another who waited for it."""
        other = cls(error.key, error.attempts, error.seconds, error.reason)
        other.__cause__ = error.__cause__
        return other


class ItemError(AioLoaderError):
    """One row could not be filled: what an executor tells the engine.

    The engine turns it into a :class:`LoadError` that also names the group, the batch
    and the item. ``row`` counts from 0 within the batch, and is -1 where no row in
    particular failed; ``pid`` and ``exitcode`` (negative: a signal) are those of the last
    worker that died of it, None where it raised; ``remote_traceback`` is the traceback as
    text, from where the item was loaded.
    """

    def __init__(
        self,
        message: str,
        *,
        row: int,
        remote_traceback: str = "",
        pid: int | None = None,
        exitcode: int | None = None,
    ) -> None:
        super().__init__(message)
        self.row = row
        self.remote_traceback = remote_traceback
        self.pid = pid
        self.exitcode = exitcode

    @property
    def died(self) -> bool:
        """Whether workers died of it."""
        return self.pid is not None

    def __reduce__(self) -> tuple[object, ...]:
        state = (str(self), self.row, self.remote_traceback, self.pid, self.exitcode)
        return (_rebuild_item_error, state)


def _rebuild_item_error(
    message: str, row: int, remote_traceback: str, pid: int | None, exitcode: int | None
) -> ItemError:
    return ItemError(
        message, row=row, remote_traceback=remote_traceback, pid=pid, exitcode=exitcode
    )


class LoadError(AioLoaderError):
    """A batch could not be loaded; raised in that batch's turn.

    ``group`` and ``batch`` name the batch as messages do ("training group 0", its index
    within the group), ``row`` counts within the batch and is None where the failure
    concerns the batch as a whole, and ``item`` is the data descriptor of that row.
    ``__cause__`` is the original exception where it could be carried over, and a note
    holds its traceback from the worker.
    """

    def __init__(
        self,
        message: str,
        *,
        group: str = "",
        batch: int | None = None,
        row: int | None = None,
        item: object = None,
    ) -> None:
        super().__init__(message)
        self.group = group
        self.batch = batch
        self.row = row
        self.item = item


class NotCached(LoadError):
    """A batch of a group without ``loader_arrays`` is not in its cache; it is dropped."""


class WorkerDied(LoadError):
    """A worker process died, and went on dying, on the same item, or before any.

    ``pid`` and ``exitcode`` are those of the last one; a negative exit code is a signal.
    """

    pid: int | None = None
    exitcode: int | None = None
