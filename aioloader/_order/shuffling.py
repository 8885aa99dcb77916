"""Grain's shuffle: any position of any epoch on its own, or many at once; and its seeds."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import numpy as np

from aioloader._order.arguments import whole_number
from aioloader._order.positions import as_array, integers, plain, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from aioloader._order.positions import Positions

__all__ = ["MAX_SEED", "Shuffle", "WindowShuffle", "derive_seed"]

MAX_SEED = (1 << 32) - 1

_BEYOND = 1 << 62
_MASK32 = (1 << 32) - 1
_TABLE_LENGTH = 1 << 16  # an epoch up to here is looked up in a table, of at most 512 KiB
_BLOCK = 1 << 13  # of a longer one this many positions are kept, where the last ones were asked
_WORTH_A_BLOCK = 64
_KEPT = 3  # tables or blocks: readers in several threads cross into an epoch one by one


def derive_seed(seeds: Iterable[tuple[int, int]]) -> int | None:
    """Return the seed that follows from some seeds and how far away each of them is.

    >>> derive_seed([(42, 1)]), derive_seed([(42, 2)]), derive_seed([])
    (3329053876, 955475868, None)
    """
    entropy = [number for pair in seeds for number in pair]
    if not entropy:
        return None
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0])


@final
@dataclass(frozen=True, slots=True)
class Shuffle:
    """The positions of a dataset of ``length``, permuted anew in every epoch.

    Epoch ``e`` is the permutation of ``seed + e``, of the positions in the parent's epoch ``e``:
    that of Grain, with the one exception that it is a permutation also where ``length - 1`` is
    a power of four from 2**16 on.

    >>> shuffle = Shuffle(10, 1)
    >>> [shuffle.at(index) for index in range(10)]
    [5, 7, 6, 0, 4, 8, 9, 2, 1, 3]
    >>> shuffle.take(range(10, 20)).tolist() == [10 + Shuffle(10, 2).at(k) for k in range(10)]
    True
    """

    length: int
    seed: int
    _kept: dict[tuple[int, int], NDArray[np.int64]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _missed: dict[tuple[int, int], int] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        whole_number("seed", self.seed, at_least=0, at_most=MAX_SEED)

    def at(self, index: int) -> int:
        """Return which position of the parent is at ``index`` of the shuffled dataset."""
        epoch, position = wrapped(index, self.length)
        if self.length == 1:
            return index
        start = index - position
        block = position // _BLOCK if self.length > _TABLE_LENGTH else 0
        places = self._kept.get((epoch, block))
        if places is None:
            places = self._look_ahead(epoch, block, 1)
        if places is None:
            return start + self._cipher(epoch).one(position)
        return start + places.item(position - block * _BLOCK)

    def take(self, indices: Positions) -> NDArray[Any]:
        """Return the same for many indices."""
        if not len(indices):
            return np.empty(0, dtype=np.int64)
        if isinstance(indices, range):
            low, high = sorted((indices[0], indices[-1]))
        else:
            low, high = int(indices.min()), int(indices.max())
        if not -_BEYOND < low <= high < _BEYOND:
            return integers(self.at(index) for index in plain(indices))
        epoch, position = wrapped(low, self.length)
        start = low - position
        if high >= start + self.length:
            return self._take_epochs(as_array(indices).astype(np.int64, copy=False))
        if isinstance(indices, range):
            within: Positions = range(indices.start - start, indices.stop - start, indices.step)
        else:
            within = (indices - start).astype(np.int64, copy=False)
        places = self._take(epoch, within, position, high - start)
        return places + start if start else places

    def _take_epochs(self, indices: NDArray[Any]) -> NDArray[Any]:
        if self.length >= _BEYOND:
            return integers(self.at(index) for index in plain(indices))
        epochs = indices // self.length
        within = indices - epochs * self.length
        places: NDArray[Any] = np.empty(len(indices), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            of_epoch = np.flatnonzero(epochs == epoch)
            part = within[of_epoch]
            places[of_epoch] = self._take(epoch, part, int(part.min()), int(part.max()))
        places += epochs * self.length
        return places

    def _take(self, epoch: int, within: Positions, low: int, high: int) -> NDArray[Any]:
        """Permute positions of one epoch, between ``low`` and ``high``."""
        if self.length == 1:
            return np.zeros(len(within), dtype=np.int64)
        block, offset = 0, 0
        if self.length > _TABLE_LENGTH:
            block = low // _BLOCK
            offset = block * _BLOCK
            if high // _BLOCK != block:
                return self._cipher(epoch).many(as_array(within))
        places = self._kept.get((epoch, block))
        if places is None:
            places = self._look_ahead(epoch, block, len(within))
        if places is None:
            return self._cipher(epoch).many(as_array(within))
        if isinstance(within, range):
            if within.step > 0:
                return places[within.start - offset : within.stop - offset : within.step]
            within = as_array(within)
        found: NDArray[Any] = places[within - offset if offset else within]
        return found

    def _cipher(self, epoch: int) -> _Cipher:
        return _cipher(self.length, (self.seed + epoch) & _MASK32)

    def _look_ahead(self, epoch: int, block: int, count: int) -> NDArray[np.int64] | None:
        """Return a block of an epoch as a table, where enough of it was asked for in a row.

        For a short epoch the table is all of it, and worth its while from the first time on.
        """
        if self.length <= _TABLE_LENGTH:
            places = self._cipher(epoch).table()
        else:
            missed = self._missed.pop((epoch, block), 0) + count
            if missed < _WORTH_A_BLOCK:
                self._missed.clear()
                self._missed[epoch, block] = missed
                return None
            stop = min((block + 1) * _BLOCK, self.length)
            places = self._cipher(epoch).many(np.arange(block * _BLOCK, stop))
        places.flags.writeable = False  # parts of it are handed out as they are
        for stale in list(self._kept)[: -_KEPT + 1]:
            self._kept.pop(stale, None)
        self._kept[epoch, block] = places
        return places

    def __reduce__(self) -> tuple[Any, ...]:
        return Shuffle, (self.length, self.seed)


@final
@dataclass(frozen=True, slots=True)
class WindowShuffle:
    """Positions permuted within windows of ``window_size``, each window in its own way.

    The ``k``-th window, counted over all epochs, has the permutation of ``seed + k``. The last
    one of an epoch has what is left, so that an epoch has every position once.

    >>> windows = WindowShuffle(5, 3, 0)
    >>> sorted(windows.at(index) for index in range(3)), sorted(map(windows.at, range(3, 5)))
    ([0, 1, 2], [3, 4])
    """

    length: int
    window_size: int
    seed: int

    def __post_init__(self) -> None:
        whole_number("window_size", self.window_size, at_least=1)
        whole_number("seed", self.seed, at_least=0, at_most=MAX_SEED)

    def at(self, index: int) -> int:
        """Return which position of the parent is at ``index``."""
        epoch, position = wrapped(index, self.length)
        window, within = divmod(position, self.window_size)
        start = window * self.window_size
        number = epoch * -(-self.length // self.window_size) + window
        size = min(self.window_size, self.length - start)
        shuffle = _window(size, (self.seed + number) & _MASK32)
        return epoch * self.length + start + shuffle.at(within)

    def take(self, indices: Positions) -> NDArray[Any]:
        """Return the same for many indices."""
        return integers(self.at(index) for index in plain(indices))


@functools.lru_cache(maxsize=16)
def _window(size: int, seed: int) -> Shuffle:
    return Shuffle(size, seed)


@functools.lru_cache(maxsize=64)
def _cipher(length: int, seed: int) -> _Cipher:
    # Grain takes the logarithm of the largest position: a bit too few where that is a power of 2.
    half = max(((length - 1).bit_length() + 1) // 2, 8)
    mask = (1 << half) - 1
    return _Cipher(length, half, tuple(word & mask for word in _seed_words(seed)))


@final
@dataclass(frozen=True, slots=True)
class _Cipher:
    """Grain's permutation of one epoch: a Feistel network, and cycle walking.

    Its round function is that of the block cipher Simon (Beaulieu and others, 2013): rotations
    by 1, 8 and 2 bits. A position that is sent past the end is sent through again until it is
    inside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """

    length: int
    half: int  # how many bits a half has
    keys: tuple[int, ...]

    def one(self, position: int) -> int:
        """Return where a position goes."""
        length, half = self.length, self.half
        mask, by1, by8, by2 = (1 << half) - 1, half - 1, half - 8, half - 2
        k0, k1, k2, k3 = self.keys
        while True:
            left, right = position >> half, position & mask
            # A half beside itself, shifted to the right, is that half rotated to the left.
            twice = right | right << half
            left ^= (((twice >> by1) & (twice >> by8)) ^ (twice >> by2)) & mask ^ k0
            twice = left | left << half
            right ^= (((twice >> by1) & (twice >> by8)) ^ (twice >> by2)) & mask ^ k1
            twice = right | right << half
            left ^= (((twice >> by1) & (twice >> by8)) ^ (twice >> by2)) & mask ^ k2
            twice = left | left << half
            right ^= (((twice >> by1) & (twice >> by8)) ^ (twice >> by2)) & mask ^ k3
            position = left << half | right
            if position < length:
                return position

    def many(self, positions: NDArray[Any]) -> NDArray[np.int64]:
        """Return where many positions go."""
        places = np.empty(len(positions), dtype=np.int64)
        for first in range(0, len(positions), _BLOCK):  # small enough for a core's own cache
            chunk = slice(first, first + _BLOCK)
            places[chunk] = self._walk(positions[chunk])
        return places

    def table(self) -> NDArray[np.int64]:
        """Return where all positions go, in the order of positions.

        Where there are few, nearly all of the 2**16 that the network knows are past the end,
        and walks are long. So each step of all walks is taken at once, then each second one,
        each fourth, and so on: a position inside stays where it is.
        """
        step = self._pass(np.arange(1 << 2 * self.half, dtype=np.uint32)).astype(np.int64)
        places = step[: self.length].copy()
        step[: self.length] = np.arange(self.length)
        while int(places.max()) >= self.length:
            places = step[places]
            step = step[step]
        return places

    def _walk(self, positions: NDArray[Any]) -> NDArray[Any]:
        places = self._pass(positions.astype(np.uint32 if self.half <= 16 else np.uint64))
        outside = np.flatnonzero(places >= self.length)
        while outside.size:
            again = self._pass(places[outside])
            places[outside] = again
            outside = outside[again >= self.length]
        return places

    def _pass(self, positions: NDArray[Any]) -> NDArray[Any]:
        """Send positions, of an unsigned type in which they fit, through all rounds once."""
        word = positions.dtype.type
        half, mask = word(self.half), word((1 << self.half) - 1)
        by1, by8, by2 = word(self.half - 1), word(self.half - 8), word(self.half - 2)
        left, right = positions >> half, positions & mask
        twice, spare, mixed = (np.empty_like(positions) for _ in range(3))
        for key in self.keys:
            np.left_shift(right, half, out=twice)
            np.bitwise_or(twice, right, out=twice)
            np.right_shift(twice, by1, out=mixed)
            np.right_shift(twice, by8, out=spare)
            np.bitwise_and(mixed, spare, out=mixed)
            np.right_shift(twice, by2, out=spare)
            np.bitwise_xor(mixed, spare, out=mixed)
            np.bitwise_and(mixed, mask, out=mixed)
            np.bitwise_xor(mixed, word(key), out=mixed)
            np.bitwise_xor(left, mixed, out=left)
            left, right = right, left
        np.left_shift(left, half, out=left)
        places: NDArray[Any] = np.bitwise_or(left, right, out=left)
        return places


def _seed_words(seed: int) -> tuple[int, int, int, int]:
    """Return four words of 32 bits: ``std::seed_seq{seed}.generate`` of the C++ standard.

    It is the section [rand.util.seedseq], written out for one number in and four out.
    """
    words = [0x8B8B8B8B] * 4

    def mixed(number: int) -> int:
        return number ^ number >> 27

    for k in range(4):
        fresh = 1664525 * mixed(words[k] ^ words[(k + 1) % 4] ^ words[k - 1]) & _MASK32
        words[(k + 1) % 4] = words[(k + 1) % 4] + fresh & _MASK32
        fresh = fresh + (1, 1 + seed, 2, 3)[k] & _MASK32
        words[(k + 2) % 4] = words[(k + 2) % 4] + fresh & _MASK32
        words[k] = fresh
    for k in range(4):
        total = words[k] + words[(k + 1) % 4] + words[k - 1] & _MASK32
        fresh = 1566083941 * mixed(total) & _MASK32
        words[(k + 1) % 4] ^= fresh
        fresh = fresh - k & _MASK32
        words[(k + 2) % 4] ^= fresh
        words[k] = fresh
    return words[0], words[1], words[2], words[3]
