"""What is wrong with a file that a source is of."""

from __future__ import annotations

from aioloader.errors import AioLoaderError

__all__ = ["ShardError"]


class ShardError(AioLoaderError, ValueError):
    """A file cannot be read at random, or is damaged; names it, the place and the reason.

    ``offset`` is where in the file that was found.
    """

    passes = False  # asking again does not help

    def __init__(self, shard: str, offset: int, reason: str) -> None:
        super().__init__(f"{shard}, at byte {offset:,}: {reason}")
        self.shard = shard
        self.offset = offset
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.shard, self.offset, self.reason)
