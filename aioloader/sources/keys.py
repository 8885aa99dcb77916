"""Keys: very many of them in little memory, with what is known of their objects."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final, overload

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aioloader.sources.seam import ObjectInfo

__all__ = ["Keys", "KeysBuilder", "Wanted", "as_wanted"]

_UNKNOWN = -1
_ENCODING = ("utf-8", "surrogateescape")  # a local disk's names may be anything


@final
@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be fetched: an object, or the bytes from ``start`` to ``stop`` of one.

    ``size`` is the whole object's, where that is known.
    """

    key: str
    start: int | None = None
    stop: int | None = None
    size: int | None = None
    etag: str | None = None

    @property
    def item(self) -> str | tuple[str, int, int]:
        """How a user writes it."""
        if self.start is None or self.stop is None:
            return self.key
        return self.key, self.start, self.stop

    @property
    def nbytes(self) -> int | None:
        """How many bytes it has, where that is known."""
        if self.start is None or self.stop is None:
            return self.size
        return self.stop - self.start

    def __str__(self) -> str:
        return self.key if self.start is None else f"{self.key}[{self.start}:{self.stop}]"


def as_wanted(item: Any) -> Wanted:
    """Return what an item asks for: a key, or ``(key, start, stop)``.

    Raises TypeError or ValueError, naming the item.
    """
    if isinstance(item, str):
        if not item:
            raise ValueError("a key may not be empty")
        return Wanted(item)
    if isinstance(item, tuple | list) and len(item) == 3 and isinstance(item[0], str):
        key, start, stop = item
        if all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in (start, stop)):
            if not 0 <= start < stop:
                raise ValueError(f"{item!r} has no bytes: 0 <= start < stop is asked for")
            return Wanted(key, int(start), int(stop))
    raise TypeError(f"{item!r} is neither a key nor (key, start, stop)")


@final
@dataclass(frozen=True, slots=True)
class _Texts:
    """Texts one after another, and where each ends."""

    blob: bytes | memoryview
    ends: np.ndarray

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return str(self.blob[start : int(self.ends[index])], *_ENCODING)

    def take(self, indices: Sequence[int]) -> _Texts:
        growing = _Growing()
        growing.add([self[index] for index in indices])
        return growing.build()


@final
class _Growing:
    """Texts to which others are added."""

    def __init__(self) -> None:
        self._blob, self._ends = bytearray(), array("q")

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def nbytes(self) -> int:
        return len(self._blob)

    def add(self, texts: Sequence[str]) -> None:
        encoded = [text.encode(*_ENCODING) for text in texts]
        ends = itertools.accumulate(map(len, encoded), initial=len(self._blob))
        self._ends.extend(itertools.islice(ends, 1, None))
        self._blob += b"".join(encoded)

    def build(self) -> _Texts:
        return _Texts(bytes(self._blob), _numbers(self._ends))


@final
class Keys(Sequence[str]):
    """Keys in an order, with the sizes and ETags that are known, and ranges if there are any.

    >>> keys = Keys.of(["a", ("b", 10, 20)])
    >>> list(keys), keys.wanted(1).nbytes
    (['a', 'b'], 10)
    """

    __slots__ = ("_ranges", "_sizes", "_tags", "_texts")

    def __init__(
        self,
        texts: _Texts,
        sizes: np.ndarray | None = None,
        tags: _Texts | None = None,
        ranges: np.ndarray | None = None,
    ) -> None:
        self._texts = texts
        self._sizes = sizes
        self._tags = tags
        self._ranges = ranges

    @classmethod
    def of(cls, items: Iterable[Any]) -> Keys:
        """Return keys of what a user gives: texts, and tuples ``(key, start, stop)``."""
        builder = KeysBuilder()
        for item in items:
            builder.add(item if isinstance(item, Wanted) else as_wanted(item))
        return builder.build()

    def __reduce__(self) -> tuple[Any, ...]:
        parts = self.parts()
        for name in ("blob", "tags"):
            if name in parts:  # a view would not travel
                parts[name] = bytes(parts[name])
        return Keys.from_parts, (parts,)

    @classmethod
    def from_parts(cls, parts: dict[str, Any]) -> Keys:
        """Return keys from what `parts` returns."""
        texts = _Texts(parts["blob"], parts["ends"])
        tags = _Texts(parts["tags"], parts["tag_ends"]) if "tags" in parts else None
        return cls(texts, parts.get("sizes"), tags, parts.get("ranges"))

    def parts(self) -> dict[str, Any]:
        """Return what they consist of, by name, for an index file."""
        parts: dict[str, Any] = {"blob": self._texts.blob, "ends": self._texts.ends}
        if self._sizes is not None:
            parts["sizes"] = self._sizes
        if self._ranges is not None:
            parts["ranges"] = self._ranges
        if self._tags is not None:
            parts |= {"tags": self._tags.blob, "tag_ends": self._tags.ends}
        return parts

    def __len__(self) -> int:
        return len(self._texts.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Keys: ...
    def __getitem__(self, index: int | slice) -> str | Keys:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return self._texts[range(len(self))[index]]

    def __repr__(self) -> str:
        return f"<Keys: {len(self)}>"

    @property
    def sizes(self) -> np.ndarray | None:
        """Sizes of the objects, -1 where unknown; None where none is known."""
        return self._sizes

    def wanted(self, index: int) -> Wanted:
        """Return what is to be fetched at an index, which is not negative."""
        start = stop = size = None
        if self._ranges is not None and self._ranges[index, 0] != _UNKNOWN:
            start, stop = map(int, self._ranges[index])
        if self._sizes is not None and self._sizes[index] != _UNKNOWN:
            size = int(self._sizes[index])
        etag = self._tags[index] if self._tags is not None else None
        return Wanted(self._texts[index], start, stop, size, etag or None)

    def take(self, indices: Sequence[int]) -> Keys:
        """Return those at some indices."""
        chosen = np.asarray(indices, np.int64)
        return Keys(
            self._texts.take(indices),
            None if self._sizes is None else self._sizes[chosen],
            None if self._tags is None else self._tags.take(indices),
            None if self._ranges is None else self._ranges[chosen],
        )

    def where(self, chosen: Callable[[str], Any]) -> Keys:
        """Return those of which ``chosen(key)`` is true."""
        indices = [index for index, key in enumerate(self) if chosen(key)]
        return self if len(indices) == len(self) else self.take(indices)

    def in_order(self) -> Keys:
        """Return them sorted."""
        keys = list(self)
        if all(one <= other for one, other in itertools.pairwise(keys)):
            return self
        return self.take(sorted(range(len(keys)), key=keys.__getitem__))


@final
class KeysBuilder:
    """Collects keys page by page."""

    def __init__(self) -> None:
        self._texts, self._tags = _Growing(), _Growing()
        self._sizes = array("q")
        self._ranges: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, wanted: Wanted) -> None:
        """Add one."""
        if wanted.start is not None and wanted.stop is not None:
            self._ranges[len(self)] = wanted.start, wanted.stop
        self._texts.add([wanted.key])
        self._tags.add([wanted.etag or ""])
        self._sizes.append(_UNKNOWN if wanted.size is None else wanted.size)

    def add_page(self, page: Iterable[ObjectInfo], chosen: Callable[[str], Any]) -> None:
        """Add what was listed and is chosen."""
        infos = [info for info in page if chosen(info.key)]
        self._texts.add([info.key for info in infos])
        self._tags.add([info.etag or "" for info in infos])
        self._sizes.extend([info.size for info in infos])

    def build(self) -> Keys:
        """Return the keys."""
        sizes = _numbers(self._sizes)
        ranges = None
        if self._ranges:
            ranges = np.full((len(self), 2), _UNKNOWN, "<i8")
            ranges[list(self._ranges)] = list(self._ranges.values())
        return Keys(
            self._texts.build(),
            sizes if bool((sizes != _UNKNOWN).any()) else None,
            self._tags.build() if self._tags.nbytes else None,
            ranges,
        )


def _numbers(values: array[int]) -> np.ndarray:
    numbers = np.array(values, "<i8")
    numbers.flags.writeable = False
    return numbers
