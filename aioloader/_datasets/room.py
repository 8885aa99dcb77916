"""Room: how many elements may be under way or ready, by their number and by their bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, final

import numpy as np

if TYPE_CHECKING:
    from aioloader._datasets.options import ReadOptions

__all__ = ["Room", "rough_size"]

_SMALL = 64
_SAMPLE = 16
_DEPTH = 6


@final
class Room:
    """Learns from elements that have passed how large those to come will be."""

    def __init__(self, options: ReadOptions) -> None:
        ahead = options.reads_ahead
        self._size = options.prefetch_buffer_size if ahead else 0
        self._bytes = options.prefetch_buffer_bytes
        self._first = min(self._size, options.num_threads)
        self._average = 0.0
        self._count = 0
        self.limit = self._first

    def measure(self, element: Any) -> None:
        """Take an element into account: each of the first, and later some."""
        self._count += 1
        if self._count > _SAMPLE and self._count % _SAMPLE:
            return
        try:
            size = float(rough_size(element))
        except Exception:  # an element of the user's may be anything
            size = _SMALL
        weight = 1 / min(self._count, 8)
        self._average = max(self._average + (size - self._average) * weight, 1.0)
        self.limit = min(self._size, max(int(self._bytes / self._average), 1)) if self._size else 0


def rough_size(value: Any, depth: int = 0) -> int:
    """Return about how many bytes an element keeps; what is long or deep is estimated.

    >>> rough_size({"x": np.zeros(1000), "y": [b"12345"] * 10})
    8690
    """
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return _SMALL + len(value)
    parts: Iterable[Any] = ()
    if depth >= _DEPTH or isinstance(value, (int, float, type(None))):
        return _SMALL
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, (list, tuple)):
        parts = value
    elif isinstance(nbytes := getattr(value, "nbytes", None), int):
        return nbytes
    elif hasattr(value, "__dict__"):
        parts = vars(value).values()
    sizes = [rough_size(part, depth + 1) for part in itertools.islice(parts, _SAMPLE)]
    if len(sizes) < _SAMPLE:
        return sum(sizes) or _SMALL
    return sum(sizes) * len(parts) // _SAMPLE  # type: ignore[arg-type]
