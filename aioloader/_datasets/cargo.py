"""Cargo: elements as bytes in a slot; arrays lie there as they are, all else as one pickle."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any, NamedTuple, final

import cloudpickle
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["LARGE_BYTES", "Cargo", "Loader", "load", "unload"]

LARGE_BYTES = 8 * 1024
"""From this size on an array may be handed out as a view of its slot."""

_ALIGNMENT = 64
_SPOKEN_BYTES = 4 * 1024
_MAIN = b"__main__"  # workers have another, so that what refers to it has to travel by value


class _Block(NamedTuple):
    """Arrays of one shape and dtype, one after the other; or a large one by itself."""

    offset: int  # in the slot; or -1 - k for what is the message's k-th
    rows: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: str = "C"


class Cargo(NamedTuple):
    """What is said of a slot: a message of few bytes, as long as all has found room there.

    ``head`` has pickles of lists, in which arrays are calls for the next of ``blocks``, or of
    ``large``; or it is the offset and the length of those pickles. ``apart`` is what has found
    no room, and ``nbytes`` what a slot would need for all of it.
    """

    head: bytes | tuple[int, int]
    pickles: int
    blocks: list[_Block]
    large: list[_Block]
    apart: list[np.ndarray]
    nbytes: int

    @property
    def is_lent(self) -> bool:
        """Whether what is unloaded may refer to the slot."""
        return any(block.offset >= 0 for block in self.large)


@final
class Loader:
    """Writes elements into ``memory``, one run of them after the other.

    Large arrays are written at once, while they are in the processor's cache, and let go.
    """

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory
        self._hold = _Hold(memory)
        self._head = io.BytesIO()
        self._pickles = 0

    @property
    def nbytes(self) -> int:
        """How many bytes a slot would need for what has come so far, about."""
        return self._hold.needed + self._hold.small_bytes + self._head.tell()

    def add(self, elements: list[Any]) -> None:
        """Take some elements; raises whatever pickling raises, and then has taken none."""
        start, mark = self._head.tell(), self._hold.mark()
        try:
            self._dump(_Pickler, elements)
            plain = _MAIN not in self._head.getbuffer()[start:].tobytes()
        except Exception:
            plain = False
        if not plain:
            self._back_to(start, mark)
            try:
                self._dump(_CloudPickler, elements)
            except BaseException:
                self._back_to(start, mark)
                raise
        self._pickles += 1

    def finish(self) -> Cargo:
        """Write what is left, and return what to say of the slot."""
        hold = self._hold
        blocks = [hold.put(arrays) for arrays in hold.small]
        head: bytes | tuple[int, int] = self._head.getvalue()
        if len(head) > _SPOKEN_BYTES:
            offset, length = hold.room(len(head)), len(head)
            if offset is not None:
                self._memory[offset : offset + length] = np.frombuffer(head, np.uint8)  # type: ignore[arg-type]
                head = offset, length
        return Cargo(head, self._pickles, blocks, hold.large, hold.apart, hold.needed)

    def _dump(self, pickler: type[_Pickler | _CloudPickler], elements: list[Any]) -> None:
        writer = pickler(self._head, 5)
        writer.take = self._hold.take
        writer.dump(elements)

    def _back_to(self, start: int, mark: _Mark) -> None:
        self._head.seek(start)
        self._head.truncate()
        self._hold.back_to(mark)


def load(elements: list[Any], memory: np.ndarray) -> Cargo:
    """Write a list of anything into ``memory``; raises whatever pickling raises."""
    loader = Loader(memory)
    loader.add(elements)
    return loader.finish()


def unload(cargo: Cargo, memory: np.ndarray, *, lend: bool) -> list[Any]:
    """Return all elements again.

    Their arrays have memory of their own, but for large ones if the slot is to be lent: those
    are views of ``memory``.
    """
    head = cargo.head
    if isinstance(head, tuple):
        offset, length = head
        head = memory[offset : offset + length].tobytes()
    text = io.BytesIO(head)
    columns = [_small(_array(block, cargo, memory)) for block in cargo.blocks]
    large = (_large(block, cargo, memory, lend) for block in cargo.large)
    elements: list[Any] = []
    for _ in range(cargo.pickles):
        reader = _Unpickler(text)
        reader.columns, reader.large = columns, large
        elements += reader.load()
    return elements


# Markers, which stand in the pickle for "the next array".


def _column(number: int) -> Any:
    raise RuntimeError("this pickle needs the slot that it belongs to")


def _next_large() -> Any:
    raise RuntimeError("this pickle needs the slot that it belongs to")


@final
class _Column:
    """Pickles as what returns the next array of a column."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _column, (self._number,)

    def __call__(self) -> None:
        """Pickle wants it to be callable."""


class _Mark(NamedTuple):
    """What a `_Hold` had at some moment."""

    small: list[int]
    large: int
    apart: int
    small_bytes: int
    needed: int
    end: int


@final
class _Hold:
    """The arrays of pickles: the large ones go into the slot at once, the small ones together."""

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory
        self._end = 0
        self._columns: dict[Any, tuple[_Column, list[np.ndarray]]] = {}
        self.large: list[_Block] = []
        self.apart: list[np.ndarray] = []
        self.needed = self.small_bytes = 0

    @property
    def small(self) -> list[list[np.ndarray]]:
        """The small arrays, column by column."""
        return [arrays for _, arrays in self._columns.values()]

    def mark(self) -> _Mark:
        """Return what `back_to` needs."""
        lengths = [len(arrays) for arrays in self.small]
        counts = (len(self.large), len(self.apart), self.small_bytes, self.needed, self._end)
        return _Mark(lengths, *counts)

    def back_to(self, mark: _Mark) -> None:
        """Forget what has come since."""
        keys = list(self._columns)
        for key in keys[len(mark.small) :]:
            del self._columns[key]
        for arrays, length in zip(self.small, mark.small, strict=True):
            del arrays[length:]
        del self.large[mark.large :], self.apart[mark.apart :]
        self.small_bytes, self.needed, self._end = mark.small_bytes, mark.needed, mark.end

    def take(self, array: np.ndarray) -> Any:
        """Take an array; returns how it is to be pickled."""
        dtype = array.dtype
        if dtype.hasobject:
            return NotImplemented
        nbytes = array.nbytes
        if nbytes >= LARGE_BYTES:
            self.large.append(self.put([array]))
            return _next_large, ()
        self.small_bytes += nbytes
        key = (dtype, array.shape)
        column = self._columns.get(key)
        if column is None:
            column = self._columns[key] = (_Column(len(self._columns)), [])
        column[1].append(array)
        return column[0], ()

    def put(self, arrays: list[np.ndarray]) -> _Block:
        """Write arrays of one shape and dtype, in the order of a single one's memory."""
        first = arrays[0]
        count, shape, dtype = len(arrays), first.shape, first.dtype
        order: Any = "F" if count == 1 and first.flags.fnc else "C"
        offset = self.room(count * first.nbytes)
        if offset is None:
            together = np.stack(arrays) if count > 1 else first.copy(order)[None]
            self.apart.append(together)
            return _Block(-len(self.apart), count, shape, dtype, order)
        block = _Block(offset, count, shape, dtype, order)
        target = _view(block, self._memory)
        if count == 1:
            target[0, ...] = first
        else:
            np.stack(arrays, out=target)
        return block

    def room(self, nbytes: int) -> int | None:
        """Return where so many bytes may go."""
        start = -(-self._end // _ALIGNMENT) * _ALIGNMENT
        self.needed = -(-self.needed // _ALIGNMENT) * _ALIGNMENT + nbytes
        if start + nbytes > len(self._memory):
            return None
        self._end = start + nbytes
        return start


class _Pickler(pickle.Pickler):
    take: Callable[[np.ndarray], Any]

    def reducer_override(self, obj: Any) -> Any:
        return self.take(obj) if type(obj) is np.ndarray else NotImplemented


class _CloudPickler(cloudpickle.Pickler):  # type: ignore[misc]
    take: Callable[[np.ndarray], Any]

    def reducer_override(self, obj: Any) -> Any:
        return self.take(obj) if type(obj) is np.ndarray else super().reducer_override(obj)


class _Unpickler(pickle.Unpickler):
    columns: list[Iterator[np.ndarray]]
    large: Iterator[np.ndarray]

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__:
            if name == _column.__name__:
                columns = (
                    self.columns
                )  # its memo, which no garbage collection sees, may not refer to it
                return lambda number: columns[number].__next__
            if name == _next_large.__name__:
                return self.large.__next__
        return super().find_class(module, name)


def _view(block: _Block, memory: np.ndarray) -> np.ndarray:
    shape = (block.rows, *block.shape)
    if block.order == "F":
        whole: np.ndarray = np.ndarray(
            block.shape, block.dtype, memory.data, block.offset, order="F"
        )
        return whole[None]
    return np.ndarray(shape, block.dtype, memory.data, block.offset)


def _array(block: _Block, cargo: Cargo, memory: np.ndarray) -> np.ndarray:
    return cargo.apart[-1 - block.offset] if block.offset < 0 else _view(block, memory)


def _small(column: np.ndarray) -> Iterator[np.ndarray]:
    if column.ndim > 1:
        return map(np.ndarray.copy, column)
    return (column[k, ...].copy() for k in range(len(column)))


def _large(block: _Block, cargo: Cargo, memory: np.ndarray, lend: bool) -> np.ndarray:
    array = _array(block, cargo, memory)[0, ...]
    return array if lend or block.offset < 0 else array.copy(block.order)  # type: ignore[arg-type]
