"""Positions: indices without bounds, one or many at once, and the epochs that they are in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Positions", "as_array", "integers", "plain", "wrapped"]

Positions: TypeAlias = range | NDArray[Any]
"""Indices to look up at once: a range, or an array of ``int64`` or of Python's integers."""


def wrapped(index: int, length: int) -> tuple[int, int]:
    """Return the epoch that an unbounded index is in, and its position there.

    >>> wrapped(12, 5), wrapped(-1, 5)
    ((2, 2), (-1, 4))
    """
    if not length:
        raise ZeroDivisionError(f"the dataset is empty, so it has no element {index}")
    return divmod(index, length)


def integers(numbers: Iterable[int]) -> NDArray[Any]:
    """Return whole numbers as an array; of Python's own where they are too large for NumPy's.

    >>> integers([1, 2]), integers([2**63])
    (array([1, 2]), array([9223372036854775808], dtype=object))
    """
    exact = list(numbers)
    try:
        return np.array(exact, dtype=np.int64)
    except OverflowError:
        return np.array(exact, dtype=object)


def as_array(positions: Positions) -> NDArray[Any]:
    """Return positions as an array."""
    if not isinstance(positions, range):
        return positions
    try:
        return np.arange(positions.start, positions.stop, positions.step, dtype=np.int64)
    except OverflowError:
        return integers(positions)


def plain(positions: Positions) -> Sequence[int]:
    """Return positions as Python's integers."""
    return positions if isinstance(positions, range) else positions.tolist()
