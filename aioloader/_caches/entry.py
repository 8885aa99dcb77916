"""An entry: one batch as a file, written in pieces, read by mapping it, believed by checksums."""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
import xxhash

from aioloader._caches.encoding import PickleRefused, decode_extras, encode_extras
from aioloader._caches.identity import FORMAT
from aioloader._caches.pages import fault_in, touch
from aioloader._memory.layout import layout_bytes, take_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from aioloader.protocols import Extras, Layouts

__all__ = ["BLOCK", "Damaged", "Entry", "EntryFormat", "EntryKey", "Foreign", "Header"]

BLOCK = 256 * 1024
"""The bytes that have a checksum of their own."""

PAGE = 4096
LARGEST_EXTRAS = 1 << 28

_MAGIC = b"\x89aiobat\n"
_START = struct.Struct("<8sIIQ16sQQQQQQQQ")
_CHECKSUM = slice(16, 24)


class Damaged(Exception):
    """An entry is not what somebody once wrote."""


class Foreign(Exception):
    """An entry is whole, and not the one that was asked for."""


class EntryKey(NamedTuple):
    """Which entry: the epoch whose contents it has, the batch's index in its group, its rows."""

    epoch: int
    group_index: int
    rows: int

    @property
    def path(self) -> tuple[str, str, str]:
        """Two directories and a name.

        >>> EntryKey(0, 12345, 8).path
        ('0', '12', '12345.batch')
        """
        return str(self.epoch), str(self.group_index // 1000), f"{self.group_index}.batch"

    def __str__(self) -> str:
        return "/".join(self.path)


@final
@dataclass(frozen=True, slots=True)
class Header:
    """What an entry says of itself at its start, before the checksums of its blocks."""

    identity: bytes
    layout: int
    key: EntryKey
    nbytes: int
    extras_bytes: int
    extras_checksum: int

    @property
    def start(self) -> int:
        """Where the arrays start, on a page of their own."""
        return -(-(_START.size + 8 * self.block_count) // PAGE) * PAGE

    @property
    def block_count(self) -> int:
        """How many blocks the arrays have, the last of which may be shorter."""
        return -(-self.nbytes // BLOCK)

    @property
    def size(self) -> int:
        """The bytes of the whole file."""
        return self.start + self.nbytes + self.extras_bytes

    def pack(self, checksums: Sequence[int]) -> bytes:
        """Return the header with the checksums, padded up to where the arrays start."""
        raw = bytearray(self.start)
        numbers = (*self.key, self.nbytes, self.extras_bytes, self.extras_checksum, 0)
        _START.pack_into(raw, 0, _MAGIC, FORMAT, BLOCK, 0, self.identity, self.layout, *numbers)
        struct.pack_into(f"<{len(checksums)}Q", raw, _START.size, *checksums)
        raw[_CHECKSUM] = _checksum(raw)
        return bytes(raw)

    @classmethod
    def read(cls, descriptor: int, most: int) -> tuple[Header, np.ndarray]:
        """Read an entry's header, and the checksums of its blocks.

        Nothing is believed before the header's own checksum is right, and an entry whose
        arrays are said to have more than ``most`` bytes is not read any further. Raises Damaged,
        or Foreign for what is larger, or of another version of the format.
        """
        size = os.fstat(descriptor).st_size
        raw = os.pread(descriptor, PAGE, 0)
        if len(raw) < _START.size or raw[: len(_MAGIC)] != _MAGIC:
            raise Damaged("it does not begin as an entry does")
        _, version, block, _, identity, layout, *numbers = _START.unpack_from(raw)
        if version != FORMAT:
            raise Foreign(f"it has version {version} of the format, and {FORMAT} is read")
        epoch, index, rows, nbytes, extras_bytes, extras_checksum, reserved = numbers
        header = cls(
            identity, layout, EntryKey(epoch, index, rows), nbytes, extras_bytes, extras_checksum
        )
        if block != BLOCK or reserved or extras_bytes > LARGEST_EXTRAS:
            raise Damaged("its header makes no sense")
        if header.size != size:
            raise Damaged(f"it has {size} bytes, and its header speaks of {header.size}")
        if nbytes > most:
            raise Foreign(f"its arrays have {nbytes} bytes, and those of the group {most}")
        if header.start > PAGE:
            raw = os.pread(descriptor, header.start, 0)
        if len(raw) < header.start or raw[_CHECKSUM] != _checksum(raw[: header.start]):
            raise Damaged("its header has another checksum")
        return header, np.frombuffer(raw, "<u8", header.block_count, _START.size)


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """An entry that has been read.

    ``buffer`` is a private mapping of the file, which may be written to and keeps the bytes
    when the file goes; the arrays are at ``offset`` in it, as ``layouts`` say.
    """

    buffer: mmap.mmap
    offset: int
    layouts: Layouts
    extras: Extras


@final
class EntryFormat:
    """Batches of one group to entries, and back."""

    def __init__(self, identity: bytes, layouts: Layouts, *, allow_pickle: bool) -> None:
        self._identity = identity
        self._layouts = layouts
        self._full = next(iter(layouts.values())).shape[0]
        self._allow_pickle = allow_pickle

    def layouts_of(self, rows: int) -> Layouts:
        """Return the layouts of a batch of so many rows."""
        return self._layouts if rows == self._full else take_rows(self._layouts, rows)

    def encode(
        self,
        key: EntryKey,
        arrays: Mapping[str, Any],
        extras: Mapping[str, Sequence[object]] | bytes,
    ) -> Iterator[Any]:
        """Yield the pieces of an entry, header first; arrays that have the bytes are not copied.

        ``extras`` may have been encoded already.

        Raises TypeError or ValueError, before the first piece, for what cannot be kept.
        """
        layouts = self.layouts_of(key.rows)
        encoded = (
            extras
            if isinstance(extras, bytes)
            else encode_extras(extras, key.rows, allow_pickle=self._allow_pickle)
        )
        if len(encoded) > LARGEST_EXTRAS:
            raise ValueError(
                f"the additional data have {len(encoded)} bytes, and {LARGEST_EXTRAS} are kept at "
                "most: declare what is large as an array"
            )
        pieces = list(_pieces(layouts, arrays))
        header = Header(
            self._identity,
            _layout_hash(layouts),
            key,
            layout_bytes(layouts),
            len(encoded),
            xxhash.xxh3_64_intdigest(encoded),
        )
        yield header.pack(list(_checksums(pieces)))
        yield from pieces
        yield encoded

    def open(self, descriptor: int, key: EntryKey, *, verify: bool) -> Entry:
        """Map an entry; its header and its additional data are verified in any case.

        Raises Damaged or Foreign.
        """
        header, checksums = Header.read(descriptor, layout_bytes(self._layouts))
        layouts = self.layouts_of(key.rows)
        self._require_wanted(header, key, layouts)
        mapping = mmap.mmap(descriptor, header.size, access=mmap.ACCESS_COPY)
        if not fault_in(mapping, descriptor):
            raise Damaged("the system cannot read all of it")
        with memoryview(mapping) as whole:
            if verify:
                require_blocks(whole[header.start :][: header.nbytes], checksums)
            else:
                touch(mapping)
            extras = self._extras(whole[header.size - header.extras_bytes :], header)
        return Entry(mapping, header.start, layouts, extras)

    def _require_wanted(self, header: Header, key: EntryKey, layouts: Layouts) -> None:
        if header.identity != self._identity:
            raise Foreign("it was made under other settings")
        if header.key != key:
            raise Foreign(f"it is entry {header.key}, with {header.key.rows} rows")
        if (header.layout, header.nbytes) != (_layout_hash(layouts), layout_bytes(layouts)):
            raise Foreign("its arrays lie elsewhere, or have other dtypes")

    def _extras(self, raw: memoryview, header: Header) -> Extras:
        require_extras(raw, header)
        try:
            return decode_extras(raw, header.key.rows, allow_pickle=self._allow_pickle)
        except PickleRefused as error:
            raise Foreign(str(error)) from None
        except ValueError as error:
            raise Damaged(str(error)) from None


def require_blocks(arrays: memoryview, checksums: np.ndarray) -> None:
    """Raise Damaged unless each block of the arrays has its checksum."""
    for number, expected in enumerate(checksums.tolist()):
        start = number * BLOCK
        if xxhash.xxh3_64_intdigest(arrays[start : start + BLOCK]) != expected:
            raise Damaged(f"block {number} of its arrays has another checksum")


def require_extras(raw: bytes | memoryview, header: Header) -> None:
    """Raise Damaged unless the additional data have their checksum."""
    if xxhash.xxh3_64_intdigest(raw) != header.extras_checksum:
        raise Damaged("its additional data have another checksum")


def _pieces(layouts: Layouts, arrays: Mapping[str, Any]) -> Iterator[Any]:
    if arrays.keys() != layouts.keys():
        raise ValueError(f"the arrays are {sorted(arrays)}, and not {sorted(layouts)}")
    end = 0
    for name, layout in sorted(layouts.items(), key=lambda pair: pair[1].offset):
        given = arrays[name]
        array = np.asarray(given() if callable(given) else given)
        if array.shape != layout.shape:
            raise ValueError(f"array {name!r} has the shape {array.shape}, and not {layout.shape}")
        if layout.offset > end:
            yield bytes(layout.offset - end)
        raw = np.ascontiguousarray(array, layout.numpy_dtype).reshape(-1).view(np.uint8)
        end = layout.offset + raw.nbytes
        if raw.nbytes:
            yield raw.data


def _checksums(pieces: Iterable[Any]) -> Iterator[int]:
    digest, room = xxhash.xxh3_64(), BLOCK
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            part, rest = rest[:room], rest[room:]
            digest.update(part)
            room -= len(part)
            if room == 0:
                yield digest.intdigest()
                digest, room = xxhash.xxh3_64(), BLOCK
    if room < BLOCK:
        yield digest.intdigest()


def _layout_hash(layouts: Layouts) -> int:
    """Return a hash of what may not change: neither names nor shapes."""
    where = [(a.offset, a.numpy_dtype.name, a.count) for a in layouts.values()]
    return xxhash.xxh3_64_intdigest(repr(where).encode())


def _checksum(raw: bytes | bytearray) -> bytes:
    rest = bytearray(raw)
    rest[_CHECKSUM] = bytes(8)
    return xxhash.xxh3_64_digest(rest)
