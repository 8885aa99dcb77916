"""Progress: which positions of a stream have been passed, in a few bytes."""

from __future__ import annotations

from typing import final

__all__ = ["Progress"]


@final
class Progress:
    """The positions that the consumer has received, or that were dropped.

    In order, that is one number. Out of order, it is the lowest position that has not been
    passed, and a bitmap of those beyond it, which the depth of the loader bounds.

    >>> progress = Progress(10)
    >>> progress.passed(12); progress.passed(10)
    >>> progress.position, progress.ahead
    (11, 2)
    >>> progress.passed(11)
    >>> progress.position, progress.ahead
    (13, 0)
    """

    __slots__ = ("ahead", "position")

    def __init__(self, position: int, ahead: int = 0) -> None:
        self.position = position
        self.ahead = ahead  # bit k: position + k has been passed; bit 0 never is
        self._advance()

    def passed(self, position: int) -> None:
        """Note that ``position`` has been passed."""
        offset = position - self.position
        if offset >= 0:
            self.ahead |= 1 << offset
            self._advance()

    def is_passed(self, position: int) -> bool:
        """Tell whether ``position`` has been passed."""
        offset = position - self.position
        return offset < 0 or bool(self.ahead >> offset & 1)

    def _advance(self) -> None:
        run = (~self.ahead & (self.ahead + 1)).bit_length() - 1  # trailing ones
        self.position += run
        self.ahead >>= run
