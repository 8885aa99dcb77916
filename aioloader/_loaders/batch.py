"""Batches: a loaded batch on loan to the consumer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast, final, overload

from aioloader._device.placement import check_placed
from aioloader.protocols import Ticket

if TYPE_CHECKING:
    import jax

    from aioloader._engine.stages import Loaded
    from aioloader._loaders.group import DataGroup
    from aioloader.protocols import Layouts

__all__ = ["Batch", "TrainingBatch", "ValidationBatch", "make_batch"]

D = TypeVar("D")
Keep = Callable[[Ticket, Mapping[str, Any], Mapping[str, Sequence[Any]]], None]


class Batch(Generic[D]):
    """A batch of data that a `Loader` has loaded: a `TrainingBatch` or a `ValidationBatch`.

    A batch takes one unit of the loader's depth for as long as anything refers to it. On the
    CPU backend its arrays lie in the loader's own memory, and then each of them does so too,
    and each view of one, and each computation in flight. ``with batch:`` drops the batch's
    own references at the end of the block.
    Not made by users.
    """

    def __init__(self, group: DataGroup[D], loaded: Loaded, keep: Keep | None = None) -> None:
        self._group = group
        self._keep = keep
        self._ticket = loaded.ticket
        self._hold: object = loaded.hold
        self._layouts = loaded.placed.layouts
        self._arrays: Mapping[str, jax.Array] | None = MappingProxyType(dict(loaded.placed.arrays))
        self._additional = _columns(loaded.extras)
        self._uncached = not loaded.placed.cached

    def __repr__(self) -> str:
        state = "released" if self._arrays is None else ", ".join(self._arrays)
        return f"<{type(self).__name__}: {self._ticket.describe()}: {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def release(self) -> None:
        """Drop the arrays; the slot is free once nothing else reads it."""
        self._arrays = self._hold = None

    @property
    def arrays(self) -> Mapping[str, jax.Array]:
        """The arrays, ``(batch_size, ...)`` each; raises RuntimeError once released."""
        if self._arrays is None:
            raise RuntimeError(
                f"the arrays of {self._ticket.describe()} have been released: use them inside "
                "`with batch:`, or copy them with jax.numpy.array"
            )
        return self._arrays

    def get_array(self, name: str) -> jax.Array:
        """Return ``arrays[name]``."""
        return self.arrays[name]

    @property
    def additional(self) -> Mapping[str, Sequence[Any]]:
        """What `load` returned: ``{key: [value of each row]}``, None where a row lacks the key."""
        return self._additional

    def get_additional(self, key: str, index: int | None = None, *, default: Any = None) -> Any:
        """Return additional data of one row, or of all; ``default`` where there is none."""
        column = self._additional.get(key)
        if column is None:
            return default
        if index is None:
            return column
        value = column[index]
        return default if value is None else value

    @property
    def data(self) -> Sequence[D]:
        """The rows' data descriptors, looked up when they are asked for."""
        return _Rows(self._group, self.indices)

    def get_data(self, index: int) -> D:
        """Return ``data[index]``."""
        return self.data[index]

    @cached_property
    def indices(self) -> Sequence[int]:
        """The rows' indices into the group's data."""
        indices = self._ticket.indices
        return indices if isinstance(indices, range) else tuple(indices.tolist())

    @property
    def group(self) -> DataGroup[D]:
        """The group that the batch is of."""
        return self._group

    @property
    def group_index(self) -> int:
        """Which of the group's batches it is."""
        return self._ticket.group_index

    @property
    def layouts(self) -> Layouts:
        """The layouts of `arrays`: the group's as loaded, or as cached."""
        return self._layouts

    @property
    def uncached(self) -> bool:
        """Whether the batch is as loaded, and not as cached."""
        return self._uncached

    @property
    def is_training(self) -> bool:
        """Whether this is a `TrainingBatch`."""
        return not self._ticket.validation

    @property
    def is_validation(self) -> bool:
        """Whether this is a `ValidationBatch`."""
        return self._ticket.validation

    def cache(
        self,
        arrays: dict[str, jax.Array],
        additional: dict[str, list[object]] | None = None,
        *,
        persist: bool = True,
    ) -> None:
        """Turn this batch into its cached form, and have that written to the cache.

        The write is scheduled: ``await loader.flush()`` waits for it, and so does leaving the
        loader. Until then the arrays must not be donated to a computation.

        Args:
            arrays: Arrays that correspond exactly to ``group.cache_layouts``.
            additional: Additional data in place of the present; a value for each row.
            persist: Whether to write the batch to the group's cache, if it has one that is
                not read-only.

        Raises:
            RuntimeError: The batch is cached already, or the group has no ``cache_arrays``.
            LayoutError: The arrays are not as declared.
            ValueError: A column of ``additional`` has the wrong length.
            TypeError: A value of it has no plain encoding, and ``allow_pickle`` is false.
        """
        if self._group.cache_size is None:
            raise RuntimeError("this batch cannot be cached: its group has no cache_arrays")
        if not self._uncached:
            raise RuntimeError(f"{self._ticket.describe()} is cached already")
        rows = self._ticket.rows
        layouts = self._group.layouts_of(rows, cached=True)
        assert layouts is not None
        check_placed(arrays, {"cache_arrays": layouts}, "the given batch")
        for key, column in (additional or {}).items():
            if len(column) != rows:
                raise ValueError(f"additional[{key!r}] has {len(column)} values for {rows} rows")
        self._arrays = MappingProxyType(dict(arrays))
        self._hold = None
        self._layouts = layouts
        self._uncached = False
        if additional is not None:
            self._additional = _columns(additional)
        if persist and self._keep is not None:
            self._keep(self._ticket, self._arrays, self._additional)


@final
class TrainingBatch(Batch[D]):
    """A batch to train on."""

    @property
    def epoch(self) -> int:
        """The epoch, from 0."""
        return self._ticket.epoch

    @property
    def epoch_batch(self) -> int:
        """The batch within the epoch, from 0."""
        return self._ticket.epoch_batch

    @property
    def batch_num(self) -> int:
        """The batch among all training batches, from 0."""
        return self._ticket.batch_num

    @property
    def seed(self) -> int:
        """A seed for the batch, of 63 bits, that no item has."""
        return cast("int", self._ticket.seed)

    @cached_property
    def seeds(self) -> Sequence[int]:
        """The seeds that `load` received for the rows."""
        return tuple(self._ticket.seeds or ())


@final
class ValidationBatch(Batch[D]):
    """A batch to validate with."""

    @property
    def validation_epoch(self) -> int:
        """The validation run, from 0."""
        return self._ticket.epoch

    @property
    def validation_epoch_batch(self) -> int:
        """The batch within the run, from 0."""
        return self._ticket.epoch_batch

    @property
    def validation_batch_num(self) -> int:
        """The batch among all validation batches, from 0."""
        return self._ticket.batch_num


def make_batch(group: DataGroup[D], loaded: Loaded, keep: Keep | None) -> Batch[D]:
    """Wrap what a session has loaded; ``keep`` writes to the group's cache."""
    kind = ValidationBatch if loaded.ticket.validation else TrainingBatch
    batch = kind(group, loaded, keep)
    if keep is not None and loaded.placed.cached and not loaded.remembered:
        keep(loaded.ticket, batch.arrays, batch.additional)  # it was `place` that converted it
    return batch


@final
class _Rows(Sequence[D]):
    """Some of a group's data, by index."""

    def __init__(self, group: DataGroup[D], indices: Sequence[int]) -> None:
        self._group = group
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> D: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[D]: ...
    def __getitem__(self, index: int | slice) -> D | Sequence[D]:
        if isinstance(index, slice):
            return [self._group[i] for i in self._indices[index]]
        return self._group[self._indices[index]]

    def __repr__(self) -> str:
        return repr(list(self))


_NOTHING: Mapping[str, Sequence[Any]] = MappingProxyType({})


def _columns(extras: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
    if not extras:
        return _NOTHING
    return MappingProxyType({key: list(column) for key, column in extras.items()})
