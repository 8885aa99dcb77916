"""Reading tar shards' headers by ranges, with few requests, and few bytes in each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio import to_thread

from aioloader.sources.ranges import in_order
from aioloader.sources.tar_headers import BLOCK, TarScan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioloader.sources.ranges import Ranges
    from aioloader.sources.seam import ObjectInfo
    from aioloader.sources.tar_headers import Member

__all__ = ["scan_shards"]

_FIRST_WINDOW = 64 * 1024
_LEAST_WINDOW = 4 * BLOCK  # a header, an extended one with its content, and the next
_MOST_WINDOW = 4 * 1024 * 1024
_BYTES_A_REQUEST = 1024 * 1024
_NEAR_BYTES = 64 * 1024  # to the next header: take about as long as a request of its own
_INLINE_BYTES = 64 * 1024  # are read on the loop, in less than a millisecond


async def scan_shards(
    ranges: Ranges, infos: Sequence[ObjectInfo], *, spare_requests: int
) -> list[tuple[ObjectInfo, list[Member]]]:
    """Return the files of each shard, many shards at once."""

    async def scan(info: ObjectInfo) -> tuple[ObjectInfo, list[Member]]:
        return info, await _scan(ranges, info, spare_requests)

    return await in_order(scan, infos, at_once=ranges.policy.concurrency)


async def _scan(ranges: Ranges, info: ObjectInfo, spare_requests: int) -> list[Member]:
    """Read headers one after another, in windows that follow how far they are apart.

    Requests that remain are enough at any time, if each brings the scan on by what is left,
    divided by them. While that is little, windows may be as short as a header.
    """
    scan, window = TarScan(info.key, info.size), _FIRST_WINDOW
    left = spare_requests + -(-info.size // _BYTES_A_REQUEST)
    while not scan.is_complete and scan.wanted < info.size:
        start, found = scan.wanted, len(scan.members)
        share = -(-(info.size - start) // left)
        length = max(window, share) if share > _BYTES_A_REQUEST or left == 1 else window
        piece = await ranges.read_alone(info, start, min(start + length, info.size))
        left -= 1
        if len(piece) <= _INLINE_BYTES:
            scan.feed(piece, start)
        else:
            await to_thread.run_sync(scan.feed, piece, start)
        found = max(len(scan.members) - found, 1)
        if scan.wanted - start <= found * _NEAR_BYTES:
            window = min(2 * window, _MOST_WINDOW)
        else:
            window = max(window // 4, _LEAST_WINDOW)
    return scan.finish()
