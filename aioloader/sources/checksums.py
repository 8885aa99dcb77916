"""Checksums: what a user knows of the bytes that are to come."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import xxhash

from aioloader.sources.errors import ChecksumMismatch

__all__ = ["Checksums", "checksum_of", "require_checksum"]

Checksums = Mapping[Any, str] | Callable[[Any], str | None]
"""``"algorithm:hexadecimal digits"`` by item; None where there is none."""

_ALGORITHMS: dict[str, Callable[[memoryview], str]] = {
    "crc32": lambda data: f"{zlib.crc32(data):08x}",
    "md5": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
    "sha1": lambda data: hashlib.sha1(data, usedforsecurity=False).hexdigest(),
    "sha256": lambda data: hashlib.sha256(data).hexdigest(),
    "xxh3": lambda data: xxhash.xxh3_64_hexdigest(data),
    "xxh3_128": lambda data: xxhash.xxh3_128_hexdigest(data),
    "xxh64": lambda data: xxhash.xxh64_hexdigest(data),
}
_QUICK_BYTES = 256 * 1024  # the event loop is not kept for longer than it takes to hash these


def checksum_of(checksums: Checksums | None, item: Any) -> str | None:
    """Return the checksum that an item should have; raises ValueError for none that there is.

    >>> checksum_of({"a": "crc32:00c0ffee"}, "a")
    'crc32:00c0ffee'
    """
    if checksums is None:
        return None
    expected = checksums.get(item) if isinstance(checksums, Mapping) else checksums(item)
    if expected is None:
        return None
    algorithm, colon, digits = str(expected).partition(":")
    if not colon or algorithm not in _ALGORITHMS or not digits:
        known = ", ".join(sorted(_ALGORITHMS))
        raise ValueError(f"checksum {expected!r} of {item!r} is not one of {known}, as 'md5:…'")
    return f"{algorithm}:{digits.lower()}"


async def require_checksum(name: str, payload: memoryview, expected: str) -> None:
    """Raise ChecksumMismatch unless the bytes have the checksum."""
    algorithm, _, digits = expected.partition(":")
    function = _ALGORITHMS[algorithm]
    if payload.nbytes <= _QUICK_BYTES:
        found = function(payload)
    else:
        found = await anyio.to_thread.run_sync(function, payload, abandon_on_cancel=True)
    if found.lstrip("0") != digits.lstrip("0"):
        raise ChecksumMismatch(f"{name} has the {algorithm} {found}, and should have {digits}")
