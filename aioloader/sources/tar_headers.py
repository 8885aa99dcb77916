"""Headers of tar files: blocks of 512 bytes in, members out, and nothing that is in doubt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn, final

from aioloader.sources.shard_errors import ShardError

__all__ = ["BLOCK", "Member", "TarScan", "padded"]

BLOCK = 512

_MOST_EXTENDED = 1 << 20
_ZEROS = bytes(BLOCK)
_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -d"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ\0", "xz", "unxz"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -d"),
)
_REFUSED = {
    b"1": "a hard link: its content lies elsewhere",
    b"2": "a symbolic link: its content lies elsewhere",
    b"S": "a sparse file, of which holes are not stored",
    b"M": "the rest of a file that began on another volume",
}
_REMEDY = {
    b"1": "make the shard with `tar --hard-dereference`",
    b"2": "make the shard with `tar --dereference`",
    b"S": "make the shard without `--sparse`",
}


@final
@dataclass(frozen=True, slots=True)
class Member:
    """A file in a shard: its name, and where its bytes are."""

    name: str
    start: int
    size: int

    @property
    def stop(self) -> int:
        """Where its bytes stop."""
        return self.start + self.size


@final
@dataclass(slots=True)
class _Extended:
    """What the headers before a file's own say of it."""

    name: str | None = None
    size: int | None = None


@final
@dataclass(slots=True)
class TarScan:
    """Finds the files of one shard, which it is fed with piece by piece.

    Pieces come in order, and may leave out what lies before ``position``: the contents of
    files need not be fed. So it is fed from ranges as well as beside a download::

        scan = TarScan("shard-000.tar", size)
        async for piece in download:
            scan.feed(piece)
        scan.finish()

    Args:
        shard: What errors call it.
        size: How many bytes it has; None where that is known at its end only.

    Raises:
        ShardError: It is compressed, damaged or truncated, or holds what cannot be read.
    """

    shard: str
    size: int | None = None
    members: list[Member] = field(default_factory=list, init=False)
    position: int = field(default=0, init=False)  # of the header that is needed next
    is_complete: bool = field(default=False, init=False)
    _fed: int = field(default=0, init=False)
    _buffer: bytes = field(default=b"", init=False)  # from ``position`` on
    _zeros: int = field(default=0, init=False)
    _extended: _Extended = field(default_factory=_Extended, init=False)

    @property
    def wanted(self) -> int:
        """Where the next piece should begin, at the latest."""
        return self.position + len(self._buffer)

    def feed(self, piece: bytes | memoryview, offset: int | None = None) -> None:
        """Read on; ``offset`` is where ``piece`` begins, unless it is where the last one ended."""
        begin = self._fed if offset is None else offset
        if begin > self.wanted and not self.is_complete:
            raise ValueError(f"bytes {self.wanted:,} to {begin:,} of {self.shard} were left out")
        self._fed = begin + len(piece)
        if self._fed <= self.wanted or self.is_complete:
            return
        data = self._buffer + bytes(piece[self.wanted - begin :])
        base = self.position
        while len(data) - (self.position - base) >= BLOCK:
            used = self._read(data, self.position - base)
            self.position += used
            if not used or self._zeros == 2:
                break
        self._buffer = b"" if self._zeros == 2 else data[max(self.position - base, 0) :]

    def finish(self) -> list[Member]:
        """Return the files; raises ShardError where the shard has not come to its end.

        Two blocks of zeros end a tar file. One at the very end of a file is enough, as some
        programs write no more.
        """
        size = self._fed if self.size is None else self.size
        if not self.is_complete:
            if not size:
                self._fail("it is empty")
            self._refuse_compressed(self._buffer)
            if self._zeros and self.position >= size:
                self.is_complete = True
            else:
                self._fail(
                    f"it is truncated: it has {size:,} bytes, and not the blocks of zeros that "
                    "end a tar file"
                )
        return self.members

    def _read(self, data: bytes, at: int) -> int:
        """Read what is at ``position``; returns how many bytes, 0 where there are too few."""
        header = data[at : at + BLOCK]
        if header == _ZEROS:
            self._zeros += 1
            self.is_complete = self._zeros == 2
            if self._extended != _Extended():
                self._fail("a header announces a file, and there is none")
            return BLOCK
        if self._zeros:
            self._fail("a block of zeros stands alone among others: it is damaged")
        self._check(header)
        kind, size = header[156:157], _number(header[124:136])
        if size is None:
            self._fail("a header's size is no number: it is damaged")
        if kind in (b"x", b"X", b"g", b"L", b"K"):
            return self._extend(kind, data, at + BLOCK, size)
        return BLOCK + self._file(kind, header, size)

    def _check(self, header: bytes) -> None:
        self._refuse_compressed(header)
        if header[257:263] not in (b"ustar\0", b"ustar ", bytes(6)):
            self._fail("there is no header of a tar file: it is none, or damaged")
        told = _number(header[148:156])
        plain = header[:148] + b" " * 8 + header[156:]
        # Some programs of old added up signed bytes.
        if told != sum(plain) and told != sum(memoryview(plain).cast("b")):
            self._fail("a header's checksum is wrong: it is damaged")

    def _refuse_compressed(self, head: bytes) -> None:
        for magic, what, remedy in () if self.position else _COMPRESSED:
            if head.startswith(magic):
                self._fail(
                    f"it is compressed with {what}, and so has no bytes that could be read at "
                    f"random; decompress it first (`{remedy}`)"
                )

    def _extend(self, kind: bytes, data: bytes, at: int, size: int) -> int:
        if size > _MOST_EXTENDED:
            self._fail(f"an extended header has {size:,} bytes, more than {_MOST_EXTENDED:,}")
        if self.size is not None and self.position + BLOCK + size > self.size:
            self._fail(f"it is truncated: it has {self.size:,} bytes")
        if len(data) - at < padded(size):
            return 0
        body = data[at : at + size]
        if kind == b"L":
            self._announce(_text(body))
        elif kind != b"K":
            self._pax(body, kind == b"g")
        return BLOCK + padded(size)

    def _pax(self, body: bytes, is_global: bool) -> None:
        at, end = 0, len(body.rstrip(b"\0"))
        while at < end:
            space = body.find(b" ", at, at + 9)
            digits = body[at:space] if space > at else b""
            stop = at + int(digits) if digits.isdigit() else 0
            if not space + 1 < stop <= end or body[stop - 1 : stop] != b"\n":
                self._fail("an extended header is damaged")
            name, equals, value = body[space + 1 : stop - 1].partition(b"=")
            if not equals:
                self._fail("an extended header is damaged")
            if is_global and name in (b"path", b"size"):
                self._fail(f"an extended header gives all files one {name.decode()}")
            self._set(name, value)
            at = stop

    def _set(self, name: bytes, value: bytes) -> None:
        if name == b"path":
            self._announce(value.decode("utf-8", "surrogateescape"))
        elif name == b"size":
            if not value.isdigit() or len(value) > 18:
                self._fail("an extended header's size is no number")
            self._extended.size = int(value)
        elif name.startswith(b"GNU.sparse."):
            self._refuse(b"S")

    def _announce(self, name: str) -> None:
        if self._extended.name not in (None, name):
            self._fail("extended headers give one file two names")
        self._extended.name = name

    def _file(self, kind: bytes, header: bytes, size: int) -> int:
        extended, self._extended = self._extended, _Extended()
        name = extended.name
        if name is None:
            name, prefix = _text(header[:100]), _text(header[345:500])
            if prefix and header[257:263] == b"ustar\0":
                name = f"{prefix}/{name}"
        if kind in _REFUSED:
            self._refuse(kind, name)
        if kind in b"3456V" or (kind == b"\0" and name.endswith("/")):
            return 0  # devices, directories, FIFOs and a volume's name, whatever their size says
        if kind not in (b"0", b"7", b"\0", b"D"):
            self._fail(f"{name!r} is of an unknown kind, {kind!r}")
        size = size if extended.size is None else extended.size
        start = self.position + BLOCK
        if self.size is not None and start + size > self.size:
            self._fail(f"it is truncated: {name!r} has {size:,} bytes, of {self.size - start:,}")
        if kind != b"D":  # a list of what was in a directory
            self.members.append(Member(name, start, size))
        return padded(size)

    def _refuse(self, kind: bytes, name: str | None = None) -> NoReturn:
        called = "a file" if name is None else repr(name)
        remedy = f"; {_REMEDY[kind]}" if kind in _REMEDY else ""
        self._fail(f"{called} is {_REFUSED[kind]}{remedy}")

    def _fail(self, reason: str) -> NoReturn:
        raise ShardError(self.shard, self.position, reason)


def padded(size: int) -> int:
    """Return how many bytes a content takes, with what fills its last block.

    >>> padded(0), padded(1), padded(512)
    (0, 512, 512)
    """
    return size + -size % BLOCK


def _number(raw: bytes) -> int | None:
    """Return a number of a header: octal digits, or base 256 where there are too few of them."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    digits = raw.partition(b"\0")[0].strip()
    if not digits:
        return 0
    try:
        return int(digits, 8) if digits.isdigit() else None
    except ValueError:
        return None


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")
