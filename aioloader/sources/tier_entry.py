"""Entries of a local tier: one object, or a range of one, as a file that tells what it is."""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from dataclasses import dataclass
from typing import final

import xxhash

from aioloader._caches.pages import fault_in

__all__ = ["HEADER_BYTES", "NAME", "Damaged", "Stale", "TierKey", "pack_header", "read_entry"]

_MAGIC = b"\x89aiotier"
_VERSION = 1
# The mark and version; the key's digest and the ETag's; the bytes of the payload and their
# checksum; nothing; the checksum of all that.
_HEADER = struct.Struct("<8sQ20s20sQQ48x8s")
HEADER_BYTES = _HEADER.size  # 128: what follows is aligned for whoever maps it
_NO_ETAG = bytes(20)
_MAPPED_BYTES = 1 << 20
NAME = r"[0-9a-f]{40}"


class Damaged(Exception):
    """A file is not what somebody once wrote."""


class Stale(Exception):
    """An entry is whole, and not of the object that is asked for now."""


@final
@dataclass(frozen=True, slots=True)
class TierKey:
    """Which bytes: of which object, in which store, and what is known of them.

    ``etag``, ``nbytes`` and ``checksum`` must be those of an entry where they are given.
    """

    store: str
    key: str
    start: int | None = None
    stop: int | None = None
    etag: str | None = None
    nbytes: int | None = None
    checksum: str | None = None

    @property
    def digest(self) -> bytes:
        """What names the entry: nobody can find another key with the same."""
        told = (self.store, self.key, self.start, self.stop, self.checksum)
        text = "\0".join("" if part is None else str(part) for part in told)
        return _digest(text)

    @property
    def path(self) -> tuple[str, str]:
        """A folder and a name, which tell nothing of the key."""
        name = self.digest.hex()
        return name[:2], name


def pack_header(key: TierKey, payload: memoryview) -> bytes:
    """Return what comes before the payload of an entry."""
    numbers = (payload.nbytes, xxhash.xxh3_64_intdigest(payload))
    head = _HEADER.pack(_MAGIC, _VERSION, key.digest, _tag(key.etag), *numbers, b"")[:-8]
    return head + xxhash.xxh3_64_digest(head)


def read_entry(descriptor: int, key: TierKey, *, verify: bool) -> memoryview:
    """Return the payload of an entry, read-only.

    Large ones are mapped. Small ones are read: that is quicker, and a mapping would keep a
    descriptor each. Raises Damaged or Stale.
    """
    size = os.fstat(descriptor).st_size
    raw = os.pread(descriptor, HEADER_BYTES if size >= _MAPPED_BYTES else size, 0)
    if len(raw) < HEADER_BYTES or raw[: len(_MAGIC)] != _MAGIC:
        raise Damaged("it does not begin as an entry does")
    _, version, digest, tag, nbytes, checksum, own = _HEADER.unpack_from(raw)
    if own != xxhash.xxh3_64_digest(raw[: HEADER_BYTES - 8]):
        raise Damaged("its header has another checksum")
    if version != _VERSION:
        raise Stale(f"it has version {version} of the format")
    if size != HEADER_BYTES + nbytes:
        raise Damaged(f"it has {size} bytes, and its header speaks of {HEADER_BYTES + nbytes}")
    if digest != key.digest:
        raise Stale("it is of another object")
    if key.etag is not None and tag != _tag(key.etag):
        raise Stale("the object has another ETag by now")
    if key.nbytes is not None and nbytes != key.nbytes:
        raise Stale("the object has another size by now")
    payload = _payload(descriptor, raw, size)
    if verify and xxhash.xxh3_64_intdigest(payload) != checksum:
        raise Damaged("its contents have another checksum")
    return payload


def _payload(descriptor: int, raw: bytes, size: int) -> memoryview:
    if size < _MAPPED_BYTES:
        if len(raw) != size:
            raise Damaged("it became shorter while it was read")
        return memoryview(raw)[HEADER_BYTES:]
    mapping = mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    if not fault_in(mapping, descriptor):
        raise Damaged("the system cannot read all of it")
    return memoryview(mapping).toreadonly()[HEADER_BYTES:]


def _tag(etag: str | None) -> bytes:
    return _NO_ETAG if etag is None else _digest(etag.removeprefix("W/").strip('"'))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=20).digest()
