"""Parts: what a worker is told of a chunk, and the plain values in which that travels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from aioloader.protocols import Seeds

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Part"]

_AS_IT_IS, _RANGE, _SEEDS = range(3)


class Part(NamedTuple):
    """What a worker is told of a chunk: where its rows are, and what goes into them."""

    offset: int
    layout_key: int
    rows: Sequence[int]
    items: Sequence[object]
    seeds: Sequence[int | None]

    def take(self, start: int, stop: int) -> Part:
        """Return the part for the positions ``start`` to ``stop``."""
        if start == 0 and stop == len(self.rows):
            return self
        cut = slice(start, stop)
        return self._replace(rows=self.rows[cut], items=self.items[cut], seeds=self.seeds[cut])

    def flat(self) -> tuple[Any, ...]:
        """Return it as plain values: to pickle a class takes longer than all of their numbers."""
        rows, items, seeds = _flat(self.rows), _flat(self.items), _flat(self.seeds)
        return self.offset, self.layout_key, *rows, *items, *seeds

    @classmethod
    def restore(cls, flat: tuple[Any, ...]) -> Part:
        """Return what `flat` was made of.

        >>> part = Part(64, 0, range(2, 4), ["a", "b"], Seeds(key=7, start=2, length=2))
        >>> Part.restore(part.flat()) == part
        True
        """
        offset, layout_key, *sequences = flat
        return cls(offset, layout_key, *map(_whole, sequences[::2], sequences[1::2]))


def _flat(sequence: Any) -> tuple[int, Any]:
    if type(sequence) is range:
        return _RANGE, (sequence.start, sequence.stop, sequence.step)
    if type(sequence) is Seeds:
        return _SEEDS, (sequence.key, sequence.start, sequence.length)
    return _AS_IT_IS, sequence


def _whole(kind: int, values: Any) -> Sequence[Any]:
    if kind == _RANGE:
        return range(*values)
    return Seeds(*values) if kind == _SEEDS else values
