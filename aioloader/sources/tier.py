"""The local tier: what was fetched stays in a directory, so that it is fetched once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

import anyio

from aioloader.sources.tier_shelf import Shelf, Tally

if TYPE_CHECKING:
    import os

    from aioloader.sources.tier_entry import TierKey

__all__ = ["LocalTier", "TierStatistics"]

_LOOKS = 5000
_LOOK_SECONDS = 0.001


@final
@dataclass(frozen=True, slots=True)
class TierStatistics:
    """A snapshot of what a tier has done in this process.

    Of what was asked for, ``hits`` were there and ``misses`` were not; among the latter are
    ``stale`` ones, of objects that have changed, and ``damaged`` ones, which were removed.
    ``stored`` were written, ``failed`` could not be, and ``skipped`` were not, because too much
    waited to be written or the tier is too small; ``waiting`` are to be written yet.
    ``evicted`` entries made room for others. ``nbytes`` is what the directory holds by the
    last count.
    """

    hits: int = 0
    misses: int = 0
    stale: int = 0
    damaged: int = 0
    stored: int = 0
    failed: int = 0
    skipped: int = 0
    waiting: int = 0
    evicted: int = 0
    nbytes: int = 0


@final
class LocalTier:
    """A bounded directory of fetched objects, for any number of processes at once::

        tier = LocalTier("/var/tmp/images", max_bytes=100 << 30)
        source = await ObjectStoreSource.listed("s3://bucket/images/", tier=tier)

    What is damaged, torn, foreign or out of date is a miss, never data. What was used longest
    ago goes first, roughly. A full disk or a directory that cannot be written costs what is not
    kept, and one warning in the log. Writing takes place in threads, and delays nobody.

    Args:
        directory: Where, to be made if need be; for nothing but tiers.
        max_bytes: The most bytes of files in it, by all processes together.
        verify: Whether the checksums of contents are checked when they are read; those of
            headers are, always.

    Raises:
        ValueError, TypeError: ``max_bytes`` is no number of bytes.
    """

    def __init__(
        self, directory: str | os.PathLike[str], max_bytes: int, *, verify: bool = True
    ) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
            raise TypeError(f"max_bytes={max_bytes!r} must be a whole number")
        if max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes!r} must be 1 at least")
        self._path = Path(directory).absolute()
        self._max_bytes = max_bytes
        self._verify = bool(verify)
        self._tally = Tally()
        self._shelf = self._new_shelf()

    def __repr__(self) -> str:
        return f"<LocalTier {self._path}: {self._max_bytes} bytes at most>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._path, self._max_bytes, self._verify)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def get(self, key: TierKey) -> memoryview | None:
        """Return what is kept under a key, read-only, or None."""
        shelf, payload = self._shelf, None
        if not shelf.is_off:
            loop = asyncio.get_running_loop()
            payload = await loop.run_in_executor(shelf.readers, shelf.read, key)
        self._tally.add("misses" if payload is None else "hits")
        return payload

    def keep(self, key: TierKey, payload: memoryview) -> None:
        """Have a thread write what was fetched."""
        self._shelf.write_later(key, payload)

    async def flush(self) -> None:
        """Wait until everything is written that is to be written now."""
        await _settled(self._shelf)

    async def aclose(self) -> None:
        """Write what is to be written, and end the threads; the tier may be used again."""
        shelf, self._shelf = self._shelf, self._new_shelf()
        try:
            await _settled(shelf)
        finally:
            shelf.close()
        for _ in range(_LOOKS):  # nice threads may be long in ending
            if not shelf.has_threads:
                break
            await anyio.sleep(_LOOK_SECONDS)

    def statistics(self) -> TierStatistics:
        """Return a snapshot."""
        shelf = self._shelf
        figures = {"waiting": len(shelf.writing), "nbytes": shelf.nbytes}
        return TierStatistics(**self._tally.counts, **figures)

    def _new_shelf(self) -> Shelf:
        return Shelf(self._path, self._max_bytes, self._tally, verify=self._verify)


async def _settled(shelf: Shelf) -> None:
    if waiting := [asyncio.wrap_future(future) for future in list(shelf.writing)]:
        await asyncio.wait(waiting)


def _rebuild(path: Path, max_bytes: int, verify: bool) -> LocalTier:
    return LocalTier(path, max_bytes, verify=verify)
