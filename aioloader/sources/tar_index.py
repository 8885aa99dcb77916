"""The index of tar shards: where each sample's files are, in little memory, and as a file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np
import xxhash

from aioloader.sources.errors import IndexDamaged
from aioloader.sources.seam import ObjectInfo
from aioloader.sources.shard_errors import ShardError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt

    from aioloader.sources.tar_headers import Member

__all__ = ["Place", "TarIndex", "by_basename", "grouping"]

_MAGIC = b"aioloader tar index 1\n"
_COLUMNS = {
    "shard": "<i4",  # of each sample
    "first": "<i8",  # each sample's first file, and where the last one's stop
    "key_stop": "<i8",  # where each sample's key stops among the keys
    "field": "<i4",  # of each file, as a number
    "start": "<i8",
    "size": "<i8",
}
_BASENAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)


@final
@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample is: its key, the number of its shard, its fields and their bytes."""

    key: str
    shard: int
    fields: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


@final
class TarIndex:
    """All samples of some shards: a value, which pickles, and can be saved.

    It takes about 20 bytes for each file, 12 for each sample, and its key. ``shards`` are
    those that it was made of, in order, with sizes and ETags; ``group_by`` tells how their
    files became samples.
    """

    __slots__ = ("_columns", "_fields", "_keys", "group_by", "shards")

    def __init__(
        self,
        shards: Sequence[ObjectInfo],
        group_by: str,
        keys: bytes,
        fields: Sequence[str],
        columns: dict[str, npt.NDArray[Any]],
    ) -> None:
        self.shards = tuple(shards)
        self.group_by = group_by
        self._keys = keys
        self._fields = tuple(fields)
        self._columns = columns

    @classmethod
    def of(
        cls,
        shards: Iterable[tuple[ObjectInfo, Sequence[Member]]],
        group_by: str | Callable[[str], tuple[str, str] | None] = "basename",
    ) -> Self:
        """Make one of the files that were found in each shard, as by `TarScan`.

        Files that follow each other and have the same key are a sample, as in WebDataset.

        Raises:
            ShardError: A sample has two files of one name.
        """
        name, split = grouping(group_by)
        infos: list[ObjectInfo] = []
        fields: dict[str, int] = {}
        keys: list[bytes] = []
        lists: dict[str, list[int]] = {column: [] for column in _COLUMNS}
        for number, (info, members) in enumerate(shards):
            infos.append(info)
            for key, files in _samples(info.key, members, split):
                keys.append(key.encode("utf-8", "surrogateescape"))
                lists["shard"].append(number)
                lists["first"].append(len(lists["start"]))
                for field, member in files.items():
                    lists["field"].append(fields.setdefault(field, len(fields)))
                    lists["start"].append(member.start)
                    lists["size"].append(member.size)
        lists["first"].append(len(lists["start"]))
        columns = {c: np.array(lists[c], dtype) for c, dtype in _COLUMNS.items()}
        columns["key_stop"] = np.cumsum([len(key) for key in keys], dtype=_COLUMNS["key_stop"])
        return cls(infos, name, b"".join(keys), list(fields), columns)

    def __len__(self) -> int:
        return len(self._columns["shard"])

    def __getitem__(self, index: int) -> Place:
        """Return where the sample at ``index`` is, of 0 and up."""
        columns = self._columns
        first, last = map(int, columns["first"][index : index + 2])
        begin = int(columns["key_stop"][index - 1]) if index else 0
        key = self._keys[begin : int(columns["key_stop"][index])]
        starts, sizes = columns["start"][first:last].tolist(), columns["size"][first:last].tolist()
        return Place(
            key.decode("utf-8", "surrogateescape"),
            int(columns["shard"][index]),
            tuple(self._fields[field] for field in columns["field"][first:last].tolist()),
            tuple((start, start + size) for start, size in zip(starts, sizes, strict=True)),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TarIndex) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash((self.shards, len(self)))

    def __repr__(self) -> str:
        return f"<TarIndex of {len(self):,} samples in {len(self.shards):,} shards>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.shards, self.group_by, self._keys, self._fields, self._columns)

    def to_bytes(self) -> bytes:
        """Return it as what `save` writes."""
        head = {
            "group_by": self.group_by,
            "shards": [[shard.key, shard.size, shard.etag] for shard in self.shards],
            "fields": self._fields,
            "keys": len(self._keys),
            "lengths": {name: len(self._columns[name]) for name in _COLUMNS},
        }
        encoded = json.dumps(head, separators=(",", ":")).encode()
        pieces = [_MAGIC, len(encoded).to_bytes(8, "little"), encoded, self._keys]
        pieces += [self._columns[name].tobytes() for name in _COLUMNS]
        raw = b"".join(pieces)
        return raw + xxhash.xxh3_128_digest(raw)

    @classmethod
    def from_bytes(cls, raw: bytes, name: str = "the index") -> Self:
        """Return what `to_bytes` was given; raises IndexDamaged where it is damaged or foreign."""
        if not raw.startswith(_MAGIC):
            raise IndexDamaged(f"{name} is no index of tar shards, or of another version")
        if len(raw) < 16 or xxhash.xxh3_128_digest(raw[:-16]) != raw[-16:]:
            raise IndexDamaged(f"{name} is damaged; delete it to have it made again")
        at = len(_MAGIC) + 8
        stop = at + int.from_bytes(raw[at - 8 : at], "little")
        head = json.loads(raw[at:stop])
        shards = [ObjectInfo(key, size, etag) for key, size, etag in head["shards"]]
        at, stop = stop, stop + head["keys"]
        keys, columns = raw[at:stop], {}
        for column, dtype in _COLUMNS.items():
            length = head["lengths"][column]
            columns[column] = np.frombuffer(raw, dtype, length, stop)
            stop += columns[column].nbytes
        return cls(shards, head["group_by"], keys, head["fields"], columns)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file, which is there as a whole or not at all. Blocks."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}-{secrets.token_hex(8)}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.write(self.to_bytes())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read it from a file. Blocks; raises IndexDamaged where that is damaged or foreign."""
        return cls.from_bytes(Path(path).read_bytes(), f"{os.fspath(path)!r}")


def grouping(
    group_by: str | Callable[[str], tuple[str, str] | None],
) -> tuple[str, Callable[[str], tuple[str, str] | None]]:
    """Return what a way of grouping is called, and the function that does it.

    Raises:
        ValueError, TypeError: There is no such way.
    """
    if callable(group_by):
        name = getattr(group_by, "__qualname__", type(group_by).__qualname__)
        return f"{group_by.__module__}.{name}", group_by
    if not isinstance(group_by, str):
        raise TypeError(f"group_by={group_by!r} must be 'basename' or a function of a name")
    if group_by != "basename":
        raise ValueError(f"group_by={group_by!r} must be 'basename' or a function of a name")
    return group_by, by_basename


def by_basename(name: str) -> tuple[str, str] | None:
    """Return the key and the field of a file: before and after its basename's first dot.

    As in WebDataset, a field is in lower case, and files without a dot, or that begin with
    one, belong to no sample; neither do those about the shard itself, ``__like_this__``.

    >>> by_basename("train/000.seg.PNG"), by_basename("train/README")
    (('train/000', 'seg.png'), None)
    """
    if "/" not in name and name.startswith("__") and name.endswith("__"):
        return None
    found = _BASENAME.fullmatch(name)
    return None if found is None else (found[1], found[2].lower())


def _samples(
    shard: str, members: Sequence[Member], split: Callable[[str], tuple[str, str] | None]
) -> Iterator[tuple[str, dict[str, Member]]]:
    current: str | None = None
    files: dict[str, Member] = {}
    for member in members:
        parts = split(member.name)
        if parts is None:
            continue
        key, field = parts
        if current is not None and key != current:
            yield current, files
            files = {}
        current = key
        if field in files or field == "__key__":
            reason = f"sample {key!r} has more than one file {field!r}"
            raise ShardError(shard, member.start, reason)
        files[field] = member
    if current is not None:
        yield current, files
