"""Errors of stores: what went wrong with one request, and whether it may pass."""

from __future__ import annotations

from typing import Any

from aioloader._fetching.judging import judge
from aioloader._fetching.redacting import redact
from aioloader.errors import AioLoaderError

__all__ = [
    "ChecksumMismatch",
    "IndexDamaged",
    "ObjectChanged",
    "ObjectMissing",
    "ShortRead",
    "StoreError",
]


class StoreError(AioLoaderError):
    """A request to a store failed.

    ``status`` is the HTTP status where there was one, ``retry_after`` the seconds that the
    store asked to wait. ``passes`` tells whether another try may help; where it is not given
    it follows from the status. Credentials of URLs and headers are kept out of the text.
    """

    _passes = False
    passes: bool
    status: int | None
    retry_after: float | None

    def __init__(
        self,
        text: str,
        *,
        passes: bool | None = None,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(redact(text))
        self.status = status
        self.retry_after = retry_after
        if passes is None:
            passes = self._passes if status is None else judge(self).passes
        self.passes = passes

    def __str__(self) -> str:
        return str(self.args[0])  # a FileNotFoundError among the bases has ways of its own

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.passes, self.status, self.retry_after)


class ObjectMissing(StoreError, FileNotFoundError):
    """There is no such object."""


class ShortRead(StoreError):
    """Fewer bytes came than there are, or than were asked for."""

    _passes = True


class ObjectChanged(StoreError):
    """The object is not the one that was listed."""


class ChecksumMismatch(StoreError):
    """The bytes that came do not have the checksum that they should have."""

    _passes = True


class IndexDamaged(AioLoaderError, ValueError):
    """A file is no index of objects, or a damaged one."""


def _rebuild(
    kind: type[StoreError],
    text: str,
    passes: bool,
    status: int | None,
    retry_after: float | None,
) -> StoreError:
    return kind(text, passes=passes, status=status, retry_after=retry_after)
