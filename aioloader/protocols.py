"""The seams of the system, and the values that cross them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    NamedTuple,
    Protocol,
    TypeAlias,
    TypeVar,
    overload,
    runtime_checkable,
)

import numpy as np

if TYPE_CHECKING:
    import jax

__all__ = [
    "ArrayLayout",
    "Arrays",
    "Cache",
    "DataLoaderProtocol",
    "Executor",
    "ExecutorFactory",
    "Extras",
    "Filled",
    "Indexable",
    "Layouts",
    "MapDatasetProtocol",
    "Placement",
    "Recipe",
    "Seeds",
    "Segment",
    "SizedIterable",
    "Slot",
    "Ticket",
    "Work",
    "take_seeds",
]

T_co = TypeVar("T_co", covariant=True)

Arrays: TypeAlias = Mapping[str, np.ndarray]

Extras: TypeAlias = Mapping[str, Sequence[object]]
"""What a recipe returned beside the arrays: a column of values for each key, one value
for each row that was asked for, ``None`` where a row returned no such key."""


class ArrayLayout(NamedTuple):
    """Where one array of a batch lies: ``numpy.frombuffer(slot, numpy_dtype, count, offset)``.

    ``shape`` includes the leading batch dimension, ``offset`` is in bytes from the start
    of the slot, ``count`` is in elements.
    """

    shape: tuple[int, ...]
    numpy_dtype: np.dtype[Any]
    jax_dtype: np.dtype[Any]
    offset: int
    count: int  # type: ignore[assignment]  # the name is the documented one


Layouts: TypeAlias = Mapping[str, ArrayLayout]

_MASK63 = np.uint64((1 << 63) - 1)
_STEP = np.uint64(0x1E3779B97F4A7C15)
_MIX_A = np.uint64(0x3F58476D1CE4E5B9)
_MIX_B = np.uint64(0x14D049BB133111EB)
_BLOCK = 2048


@dataclass(frozen=True, slots=True)
class Seeds(Sequence[int]):
    """The seeds of a run of rows, derived when they are asked for.

    Row ``i`` has the seed ``mix(key + (start + i) * step)`` in 63 bits, where ``mix`` is a
    bijection (xor-shifts and odd multipliers, after the finaliser of SplitMix64; Steele,
    Lea and Flood, 2014). Different counters under one key therefore never collide, and a
    seed fits a signed 64-bit integer. It is a value of a few bytes, however many rows.

    >>> seeds = Seeds(key=7, start=0, length=3)
    >>> len(set(seeds)), seeds[1] == Seeds(7, 1, 1)[0]
    (3, True)
    """

    key: int
    start: int
    length: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        positions = range(self.length)[index]
        if isinstance(positions, int):
            return self.take((positions,))[0]
        if positions.step == 1:
            return Seeds(self.key, self.start + positions.start, len(positions))
        return self.take(positions)

    def __iter__(self) -> Iterator[int]:
        return iter(self.take(range(self.length)))

    def __reduce__(self) -> tuple[Any, ...]:  # a quarter of what pickling fields one by one takes
        return Seeds, (self.key, self.start, self.length)

    def take(self, rows: Sequence[int]) -> list[int]:
        """Return the seeds of ``rows``, which count from 0 within this run."""
        if isinstance(rows, range) and rows.step == 1:
            return self._run(self.start + rows.start, self.start + rows.stop)
        counters = np.asarray(rows, dtype=np.uint64)
        return list(_mixed(self.key, counters + np.uint64(self.start)).tolist())

    def _run(self, start: int, stop: int) -> list[int]:
        block, first = divmod(start, _BLOCK)
        length = stop - start
        seeds: list[int] = []
        while len(seeds) < length:
            seeds += _seed_block(self.key, block)[first : first + length - len(seeds)].tolist()
            block, first = block + 1, 0
        return seeds


@functools.lru_cache(8)
def _seed_block(key: int, block: int) -> np.ndarray:
    # For a few batches at once: numpy takes as long to begin with one as it takes to mix it.
    counters = np.arange(_BLOCK, dtype=np.uint64)
    return _mixed(key, counters + np.uint64(block * _BLOCK))


def _mixed(key: int, z: np.ndarray) -> np.ndarray:
    z *= _STEP
    z += np.uint64(key)
    z &= _MASK63
    z ^= z >> np.uint64(30)
    z *= _MIX_A
    z &= _MASK63
    z ^= z >> np.uint64(27)
    z *= _MIX_B
    z &= _MASK63
    z ^= z >> np.uint64(31)
    return z


def take_seeds(seeds: Sequence[int | None], rows: Sequence[int]) -> list[int | None]:
    """Return the seeds of ``rows``, at once where they are derived."""
    if isinstance(seeds, Seeds):
        return list(seeds.take(rows))
    return [seeds[row] for row in rows]


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """Which batch: a pure value that says all there is to say about it.

    ``position`` counts every batch of the stream, training and validation, from 0.
    ``group`` is the ordinal among the training groups, or among the validation groups
    when ``validation`` is true. ``epoch`` and ``epoch_batch`` count epochs and the batches
    within one (validation runs and the batches within one, for a validation ticket), and
    ``batch_num`` counts batches of its kind from the start of the stream. ``group_index``
    identifies the batch within its group; ``indices`` are the rows' indices into the
    group's data. ``seed`` and ``seeds`` are None for validation.
    """

    position: int
    validation: bool
    group: int
    epoch: int
    epoch_batch: int
    batch_num: int
    group_index: int
    indices: range | np.ndarray
    seed: int | None
    seeds: Seeds | None

    @property
    def rows(self) -> int:
        """How many rows the batch has."""
        return len(self.indices)

    @property
    def row_seeds(self) -> Sequence[int | None]:
        """What `load` receives for each row: a seed, or None for validation."""
        return (None,) * self.rows if self.seeds is None else self.seeds

    def describe(self) -> str:
        """Name the batch as messages do.

        >>> Ticket(9, False, 0, 1, 2, 9, 5, range(4), 1, None).describe()
        'batch 5 of training group 0, epoch 1'
        """
        when = "run" if self.validation else "epoch"
        return f"batch {self.group_index} of {self.describe_group()}, {when} {self.epoch}"

    def describe_group(self) -> str:
        """Name its group as messages do."""
        return f"{'validation' if self.validation else 'training'} group {self.group}"


class Indexable(Protocol[T_co]):
    """What data may be at least: items by whole number, and how many there are."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> T_co: ...


@runtime_checkable
class MapDatasetProtocol(Protocol[T_co]):
    """A dataset whose samples are loaded by index: ``__getitem__`` and ``__len__``.

    Less than a :class:`collections.abc.Mapping` or a sequence. ``__getitem__`` may be a
    coroutine function.
    """

    def __getitem__(self, index: int, /) -> T_co: ...
    def __len__(self) -> int: ...


@runtime_checkable
class SizedIterable(Iterable[T_co], Sized, Protocol[T_co]):
    """Something that can be iterated over, in order only, and has a length."""


@runtime_checkable
class DataLoaderProtocol(Protocol[T_co]):
    """A loader of minibatches: what `cycled_minibatches` takes."""

    @property
    def minibatch_size(self) -> int: ...
    def minibatch_count(self) -> int: ...
    def minibatches(self, shuffle_seed: int | None) -> SizedIterable[T_co]: ...


class Recipe(Protocol):
    """How one item gets into its row: the user's ``load``.

    Runs where the executor runs it. ``arrays`` holds one row of each array, without the
    batch dimension and writable in place (``arrays["x"][...] = value``); what it held
    before is undefined. The returned mapping, if any, arrives in ``Batch.additional``.
    """

    def __call__(
        self, item: Any, arrays: Arrays, seed: int | None
    ) -> Mapping[str, object] | None: ...


class Segment(Protocol):
    """One block of memory that the loader and its executor both reach.

    Where it has a method ``reserve()``, that is called in a thread while the executor starts,
    and before the memory is used; it may block.
    """

    @property
    def nbytes(self) -> int: ...
    @property
    def buffer(self) -> Any:
        """The block as a writable buffer, in this process."""

    def close(self) -> None:
        """Give the block back; what still reads it keeps it alive."""


class Slot(Protocol):
    """Where one batch goes: a permit for one unit of depth, and a buffer."""

    @property
    def index(self) -> int: ...
    @property
    def offset(self) -> int:
        """Where the slot starts in its segment, in bytes."""

    @property
    def layouts(self) -> Layouts: ...
    @property
    def layout_key(self) -> int:
        """Which of the work's layouts the buffer has at the moment."""

    @property
    def rows(self) -> int: ...
    @property
    def arrays(self) -> Arrays:
        """The batch's arrays, ``(rows, ...)`` each; every view keeps the slot on loan."""

    @property
    def hold(self) -> object:
        """Something that keeps the slot on loan for as long as it is referenced."""

    @property
    def extras(self) -> Extras:
        """The batch's additional data, where it has been loaded or remembered."""

    def adopt(
        self,
        buffer: Any,
        offset: int,
        layouts: Layouts,
        extras: Extras,
        discard: Callable[[Any], object] | None = None,
    ) -> None:
        """Back this loan by other memory that holds the whole batch; the permit is the same.

        ``discard`` gets the buffer once nothing reads it, on any thread.
        """


@dataclass(frozen=True, slots=True)
class Filled:
    """What filling some rows brought: extras, and figures for the statistics."""

    extras: Extras | None = None
    seconds: float = 0.0
    retries: int = 0


class Executor(Protocol):
    """Who does the work. An async context manager: entering starts it, leaving ends it."""

    def allocate(self, nbytes: int) -> Segment:
        """Allocate memory that both sides can reach; called once, on the loop, before entering.

        What would block the loop is the segment's to do: see :class:`Segment`.
        """

    async def fill(
        self,
        slot: Slot,
        rows: Sequence[int],
        items: Sequence[object],
        seeds: Sequence[int | None],
    ) -> Filled:
        """Fill ``rows`` of ``slot`` from as many ``items``.

        May run several times at once for disjoint rows of one slot. When it is cancelled
        it must keep ``slot.hold`` until nothing can write to the slot any more. Raises
        :class:`~aioloader.errors.ItemError` for the first row that fails.
        """

    async def __aenter__(self) -> Executor: ...
    async def __aexit__(self, *exc: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Work:
    """What an executor is to do, whichever executor it is.

    ``layouts`` are the groups' row layouts; ``slot.layout_key`` indexes them.
    """

    load: Callable[..., Any]
    layouts: tuple[Layouts, ...]
    vectorized: bool = False
    num_workers: int = 1
    max_concurrency: int = 64
    retries: int = 0
    item_timeout: float | None = None
    startup: Callable[[], object] | None = None
    worker_nice: int = 10


ExecutorFactory: TypeAlias = Callable[[Work], Executor]


class Cache(Protocol):
    """What remembers batches."""

    async def fetch(self, ticket: Ticket, slot: Slot) -> Sequence[int]:
        """Fill what is remembered, and answer with the rows still missing; ``()`` is a hit.

        A hit may also be memory of the cache's own, which the slot adopts.
        """

    async def store(self, ticket: Ticket, slot: Slot, rows: Sequence[int]) -> None:
        """Remember rows that have just been loaded; what takes long keeps ``slot.hold``."""


@runtime_checkable
class Placement(Protocol):
    """A strategy that turns a batch's host arrays into ``jax.Array`` s.

    Called off the event loop. It must return an array for each layout, with the layout's
    shape and jax dtype.
    """

    def __call__(
        self, arrays: Arrays, layouts: Layouts, additional: Extras, group: Any
    ) -> Mapping[str, jax.Array]: ...
