"""Pseudo-random permutations of a range in constant memory, and the keys that choose them."""

from __future__ import annotations

import hashlib
import math
import operator
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from aioloader._order.arguments import whole_number

__all__ = ["LONGEST", "Permutation", "derive_key"]

LONGEST = 1 << 62
"""The longest range that can be permuted: its positions fit an ``int64`` with room to add."""

Words: TypeAlias = NDArray[np.uint64]

_MASK63 = (1 << 63) - 1
_TABLE_LENGTH = 4096  # up to here a table of 32 KiB beats arithmetic, and is uniform
_HALF_ROUNDS = 8
_CHUNK = 16384  # positions at once: four arrays of them stay in a core's own cache

_SHIFT_A = np.uint64(29)
_SHIFT_B = np.uint64(32)
_MIX_A = np.uint64(0x9E3779B97F4A7C15)
_MIX_B = np.uint64(0xD6E8FEB86659FD93)


def derive_key(*parts: int | str) -> int:
    """Return a 63-bit key for a domain tag and some integers.

    The same parts give the same key on every platform, in every process, for good; other
    parts give an unrelated key. Each part is hashed (BLAKE2b, RFC 7693) with its type and
    its length, so that no two lists of parts run together. Integers may be negative and of
    any size.

    >>> derive_key("items", 0, 1) == derive_key("items", 0, 1)
    True
    >>> len({derive_key("a", 1), derive_key("a", "1"), derive_key("a1"), derive_key("a", -1)})
    4
    """
    digest = hashlib.blake2b(digest_size=8, person=b"aioloader")
    for part in parts:
        digest.update(_encoded(part))
    return int.from_bytes(digest.digest(), "little") & _MASK63


def _encoded(part: int | str) -> bytes:
    """Encode a part so that it says where it ends: kind, length, bytes."""
    if isinstance(part, str):
        kind, content = b"s", part.encode()
    else:
        number = operator.index(part)
        width = number.bit_length() // 8 + 1  # leaves room for the sign
        kind, content = b"i", number.to_bytes(width, "little", signed=True)
    return kind + len(content).to_bytes(8, "little") + content


@final
class Permutation:
    """A pseudo-random permutation of ``range(length)``, chosen by ``key``.

    Any position is mapped on its own, in constant time and memory, whatever the length up
    to :data:`LONGEST`: there is no table of ``length`` entries (short ranges have a small
    one, made when it is first needed). Equal ``(length, key)`` permute equally, with every
    version of NumPy. It is an immutable value, and safe to share between threads.

    >>> permutation = Permutation(10, key=1)
    >>> sorted(permutation.take(0, 10).tolist()) == list(range(10))
    True
    >>> [permutation[3]] == permutation.take(3, 4).tolist() == permutation.at([3]).tolist()
    True
    >>> 0 <= Permutation(10**18, key=1)[10**17] < 10**18
    True
    """

    __slots__ = ("_key", "_length", "_mapping")

    def __init__(self, length: int, key: int) -> None:
        self._length = whole_number("length", length, at_least=0, at_most=LONGEST)
        self._key = whole_number("key", key)
        self._mapping: Words | _Feistel | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> int:
        """Return where ``position`` goes; negative positions count from the end."""
        return int(self.at([range(self._length)[position]])[0])

    def __repr__(self) -> str:
        return f"Permutation({self._length}, key={self._key})"

    def take(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return where the positions from ``start`` to ``stop - 1`` go.

        Raises ``IndexError`` for positions outside ``range(length)``.
        """
        return self.at(np.arange(start, stop, dtype=np.int64))

    def at(self, positions: Any) -> NDArray[np.int64]:
        """Return where each of ``positions`` goes: a new array of the same shape.

        Raises ``IndexError`` for positions outside ``range(length)``.
        """
        wanted = np.asarray(positions, dtype=np.int64)
        # A negative position is a huge one when its bits are read as unsigned.
        if wanted.size and int(wanted.view(np.uint64).max()) >= self._length:
            raise IndexError(f"positions must be in range({self._length})")
        places = np.empty(wanted.size, dtype=np.uint64)
        mapping, flat = self._mapped(), wanted.view(np.uint64).ravel()
        for first in range(0, wanted.size, _CHUNK):
            chunk = slice(first, first + _CHUNK)
            places[chunk] = mapping[flat[chunk]]
        return places.view(np.int64).reshape(wanted.shape)

    def _mapped(self) -> Words | _Feistel:
        """Make the mapping when it is first needed; two threads would make equal ones."""
        if self._mapping is None:
            short = self._length <= _TABLE_LENGTH
            self._mapping = (_table if short else _Feistel.keyed)(self._length, self._key)
        return self._mapping


def _table(length: int, key: int) -> Words:
    """Permute a short range by sorting it by random words.

    ``Generator.permutation`` would do, but NumPy keeps only the stream of its bit
    generators across versions (NEP 19), and an order must outlive an upgrade.
    """
    words = np.random.Philox(key=derive_key("table", key)).random_raw(length)
    return np.argsort(words, kind="stable").astype(np.uint64)


@final
@dataclass(frozen=True, slots=True)
class _Feistel:
    """A Feistel network over the pairs ``(left, right)`` of ``range(rows) x range(columns)``.

    A position is ``left * columns + right``. Half rounds add a keyed hash of one half to
    the other, modulo its size, which is undone by subtracting it: each is a permutation of
    the pairs, so all of them in a row are one, and look random from four on (Luby and
    Rackoff, 1988). Of the ``rows * columns >= length`` positions the few past the end are
    stepped over by mapping again until the result is inside: cycle walking. Both after
    Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002. Halves of about
    ``sqrt(length)``, rather than of whole bits, leave at most one position in
    ``sqrt(length)`` past the end, where bits leave up to half of them: with bits the time
    for one position varies threefold with the length.
    """

    length: np.uint64
    rows: np.uint64
    columns: np.uint64
    keys: tuple[np.uint64, ...]

    @classmethod
    def keyed(cls, length: int, key: int) -> _Feistel:
        """Choose the network for a length and a key."""
        rows = math.isqrt(length - 1) + 1
        columns = -(-length // rows)
        keys = tuple(np.uint64(derive_key("round", key, i)) for i in range(_HALF_ROUNDS))
        return cls(np.uint64(length), np.uint64(rows), np.uint64(columns), keys)

    def __getitem__(self, positions: Words) -> Words:
        """Map ``positions``, each of them below ``length``."""
        places = self._pass(positions)
        outside = np.flatnonzero(places >= self.length)
        while outside.size:
            again = self._pass(places[outside])
            places[outside] = again
            outside = outside[again >= self.length]
        return places

    def _pass(self, positions: Words) -> Words:
        """Send ``positions`` through all rounds once."""
        left = positions // self.columns
        right = positions - left * self.columns
        scratch = (np.empty_like(left), np.empty_like(left))
        for left_key, right_key in zip(self.keys[::2], self.keys[1::2], strict=True):
            _add_hash(left, right, self.rows, left_key, scratch)
            _add_hash(right, left, self.columns, right_key, scratch)
        left *= self.columns
        left += right
        return left


def _add_hash(
    half: Words, other: Words, size: np.uint64, key: np.uint64, scratch: tuple[Words, Words]
) -> None:
    """Add a keyed hash of ``other`` to ``half``, modulo ``size``, in place.

    The hash mixes by two multiplications and scales its upper 32 bits to ``range(size)``:
    for that ``size`` may have 32 bits. Every step writes into ``scratch``, because
    allocating would cost as much as computing.
    """
    mixed, spare = scratch
    np.add(other, key, out=mixed)
    np.multiply(mixed, _MIX_A, out=mixed)
    np.right_shift(mixed, _SHIFT_A, out=spare)
    np.bitwise_xor(mixed, spare, out=mixed)
    np.multiply(mixed, _MIX_B, out=mixed)
    np.right_shift(mixed, _SHIFT_B, out=mixed)
    np.multiply(mixed, size, out=mixed)
    np.right_shift(mixed, _SHIFT_B, out=mixed)
    np.add(half, mixed, out=half)
    # The sum is below 2 * size. Taking size from one below it wraps to something huge, so
    # that the smaller of the two is the remainder.
    np.subtract(half, size, out=mixed)
    np.minimum(half, mixed, out=half)
