"""The index: keys in a file, so that a million of them are listed once."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from aioloader._caches.directory import Directory
from aioloader._caches.writing import Temporary
from aioloader.sources.errors import IndexDamaged
from aioloader.sources.keys import Keys

__all__ = ["load_index", "save_index"]

_MAGIC = b"\x89aiokeys"
_VERSION = 1
# The mark and version; which parts there are; how many keys; bytes of keys, and of ETags; the
# checksum of what follows, and of this.
_HEADER = struct.Struct("<8sIIQQQ16s8s")
_SIZES, _RANGES, _TAGS = 1, 2, 4


def save_index(keys: Keys, path: str | os.PathLike[str]) -> None:
    """Write keys to a file, whole or not at all, in place of one that is there."""
    parts = keys.parts()
    flags = _SIZES * ("sizes" in parts) | _RANGES * ("ranges" in parts) | _TAGS * ("tags" in parts)
    names = ("ends", "sizes", "ranges", "tag_ends", "blob", "tags")
    body = [_as_bytes(parts[name]) for name in names if len(parts.get(name, ()))]
    digest = xxhash.xxh3_128()
    for piece in body:
        digest.update(piece)
    tag_bytes = len(parts.get("tags", b""))
    numbers = (_MAGIC, _VERSION, flags, len(keys), len(parts["blob"]), tag_bytes)
    head = _HEADER.pack(*numbers, digest.digest(), b"")
    head = head[:-8] + xxhash.xxh3_64_digest(head[:-8])
    target = Path(path).absolute()
    directory = Directory.open(target.parent.resolve())
    temporary = Temporary(directory)
    try:
        with open(temporary.open(), "wb", closefd=False) as file:
            file.write(head)
            for piece in body:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(directory, target.name)
    finally:
        temporary.end()
        directory.close()


def load_index(path: str | os.PathLike[str]) -> Keys:
    """Read keys from a file; their arrays lie in what was read.

    Raises `IndexDamaged` for what is no index, not whole, or of another version.
    """
    raw = Path(path).read_bytes()
    if len(raw) < _HEADER.size or raw[: len(_MAGIC)] != _MAGIC:
        raise IndexDamaged(f"{path} is no index of objects")
    _, version, flags, count, key_bytes, tag_bytes, digest, own = _HEADER.unpack_from(raw)
    if own != xxhash.xxh3_64_digest(raw[: _HEADER.size - 8]):
        raise IndexDamaged(f"{path} is damaged: its header has another checksum")
    if version != _VERSION:
        raise IndexDamaged(f"{path} has version {version} of the format; {_VERSION} is read here")
    rest = memoryview(raw)[_HEADER.size :]
    columns = 1 + bool(flags & _SIZES) + 2 * bool(flags & _RANGES) + bool(flags & _TAGS)
    if len(rest) != 8 * columns * count + key_bytes + tag_bytes:
        raise IndexDamaged(f"{path} is damaged: it has {len(raw)} bytes, which is not all of it")
    if digest != xxhash.xxh3_128_digest(rest):
        raise IndexDamaged(f"{path} is damaged: its contents have another checksum")
    keys = Keys.from_parts(_parts(raw, flags, count, key_bytes, tag_bytes))
    _require_sense(keys, path)
    return keys


def _as_bytes(part: Any) -> memoryview:
    return memoryview(part).cast("B")


def _parts(raw: bytes, flags: int, count: int, key_bytes: int, tag_bytes: int) -> dict[str, Any]:
    place = _HEADER.size
    parts: dict[str, Any] = {}

    def numbers(name: str, columns: int) -> None:
        nonlocal place
        parts[name] = np.frombuffer(raw, "<i8", count * columns, place)
        place += 8 * count * columns

    numbers("ends", 1)
    if flags & _SIZES:
        numbers("sizes", 1)
    if flags & _RANGES:
        numbers("ranges", 2)
        parts["ranges"] = parts["ranges"].reshape(-1, 2)
    if flags & _TAGS:
        numbers("tag_ends", 1)
    texts = memoryview(raw)[place:]  # no copy of them: the arrays keep all of it anyway
    parts["blob"] = texts[:key_bytes]
    if flags & _TAGS:
        parts["tags"] = texts[key_bytes:]
    return parts


def _require_sense(keys: Keys, path: object) -> None:
    parts = keys.parts()
    for blob, name in (("blob", "ends"), ("tags", "tag_ends")):
        if name not in parts:
            continue
        ends = parts[name]
        rising = bool((np.diff(ends, prepend=0) >= 0).all())
        if not rising or (len(ends) and int(ends[-1]) != len(parts[blob])):
            raise IndexDamaged(f"{path} makes no sense: its {name} are not those of its texts")
