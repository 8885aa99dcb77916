"""Pieces: what all stores check of the bytes that came, and how they are shown."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit, urlunsplit

from aioloader.sources.errors import ObjectChanged, ShortRead

__all__ = ["as_payload", "checked_range", "require_etag", "require_length", "without_credentials"]


def as_payload(data: Any) -> memoryview:
    """Return ``data`` as a read-only view of its bytes.

    >>> as_payload(bytearray(b"ab")).readonly
    True
    """
    return memoryview(data).cast("B").toreadonly()


def checked_range(start: int, stop: int) -> int:
    """Return the length of a range; raises ValueError for none that there could be."""
    if not 0 <= start <= stop:
        raise ValueError(f"there is no range from {start} to {stop}")
    return stop - start


def require_length(key: str, got: int, wanted: int, *, passes: bool = True) -> None:
    """Raise ShortRead for fewer bytes than ``wanted``, ObjectChanged for more."""
    if got < wanted:
        raise ShortRead(f"{key}: {got} of {wanted} bytes came", passes=passes)
    if got > wanted:
        raise ObjectChanged(f"{key} has {got} bytes, and was listed with {wanted}")


def require_etag(key: str, got: str | None, wanted: str | None) -> None:
    """Raise ObjectChanged where both are known, and differ."""
    if wanted is not None and got is not None and _bare(got) != _bare(wanted):
        raise ObjectChanged(f"{key} has the ETag {got}, and was listed with {wanted}")


def _bare(etag: str) -> str:
    """Return an ETag without its quotes, which listings of some stores leave out."""
    return etag.removeprefix("W/").strip('"')


def without_credentials(url: str) -> str:
    """Return a URL without its user, its query and its fragment.

    >>> without_credentials("https://me:pw@host/a?sig=b")
    'https://host/a'
    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
