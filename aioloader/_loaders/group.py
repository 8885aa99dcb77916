"""Groups: data that share a batch size, array layouts and a policy of order."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, final, overload

import numpy as np

from aioloader._memory.declaring import make_layouts
from aioloader._memory.layout import layout_bytes, take_rows
from aioloader._order.arguments import whole_number
from aioloader._order.group_order import GroupOrder, ShuffleLater

if TYPE_CHECKING:
    from aioloader.protocols import Indexable, Layouts

__all__ = ["CachePolicy", "DataGroup", "gather"]

D = TypeVar("D")

_MODES = ("default", "repeat", "reseed", "itemwise", "batchwise")
_QUICK_ROWS = 4096
_BUILT_IN = (range, list, tuple, str, bytes)


@final
@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How a group's cache on disk is to be used."""

    readonly: bool
    verify: bool
    allow_pickle: bool
    data_version: str | int | None


@final
class DataGroup(Sequence[D], Generic[D]):
    """Represent a group of data with the same batch size and array shapes.

    It is a value: it owns nothing, may be used by several loaders, and is itself the
    sequence of its data. ``data`` must not be changed once it is here.

    Args:
        batch_size: How many items make a batch.
        data: The descriptors of the items, which ``load`` receives one at a time. A sequence
            is used as it is and never copied, however long or lazy; an iterator is read to
            its end. Items must be picklable to reach worker processes.
        loader_arrays: ``{name: (shape, numpy_dtype, jax_dtype)}`` for the arrays that ``load``
            fills, without the batch dimension. Names of `ml_dtypes`, such as ``"bfloat16"``, are
            known here, and in workers where an array has such a dtype; elsewhere ``load``
            imports that package before it uses them.
        cache_arrays: The same for batches as they are cached, where that differs.
        cache_location: The directory of the cache on disk. Batches are written there, and read
            from there in later epochs and runs. With ``cache_arrays`` it is you who turn a
            batch into its cached form, with `Batch.cache`; without ``loader_arrays`` batches
            that are not in the cache are dropped, and counted.
        cache_readonly: Whether the cache is only read.
        cache_verify: Whether each entry's checksums are verified when a process first opens
            it. Without, an entry whose header is sound is believed.
        allow_pickle: Whether additional data that have no plain encoding are pickled in the
            cache, and unpickled from it: that runs what is in the file.
        data_version: What tells one state of the data from another. None for a fingerprint of
            a sample of the items. Change it where ``load`` has changed, too.
        cache: Something with the length of the data that has, or gets, an item by its index,
            such as a `DataCache` over the data: ``load`` receives ``cache[index]``, looked up
            in a thread, in place of ``data[index]``. Where items have to be awaited, pass
            ``fetch=cache.get_or_load`` to the loader and a range as the data instead.
        seed: The seed of the order and of all items' seeds, an integer.
        shuffle_first: Whether the first epoch is shuffled, item by item.
        shuffle_later: What later epochs do: ``"repeat"`` (nothing new), ``"reseed"`` (new
            seeds), ``"itemwise"`` (new seeds, items shuffled), ``"batchwise"`` (the same
            batches in another order) or ``"default"`` (``"batchwise"`` with a
            ``cache_location``, else ``"itemwise"``).
        drop_remainder: Whether items that do not fill a batch are left out. Otherwise the
            last batch is smaller.

    Raises:
        ValueError: An argument is out of range, or the data are empty.
        TypeError: An argument is of the wrong type.

    >>> group = DataGroup(2, "abcdef", loader_arrays={"x": ((3,), "uint8", "float32")})
    >>> group.batch_count, len(group), group[1], group.loader_size
    (3, 6, 'b', 6)
    """

    def __init__(
        self,
        batch_size: int,
        data: Iterable[D] | Indexable[D],
        *,
        loader_arrays: Mapping[str, tuple[Any, Any, Any]] | None = None,
        cache_arrays: Mapping[str, tuple[Any, Any, Any]] | None = None,
        cache_location: str | os.PathLike[str] | None = None,
        cache_readonly: bool = False,
        cache_verify: bool = True,
        allow_pickle: bool = False,
        data_version: str | int | None = None,
        cache: Indexable[Any] | None = None,
        seed: int = 0,
        shuffle_first: bool = False,
        shuffle_later: str = "default",
        drop_remainder: bool = True,
    ) -> None:
        if shuffle_later not in _MODES:
            raise ValueError(f"shuffle_later={shuffle_later!r} must be one of {', '.join(_MODES)}")
        if loader_arrays is None and (cache_arrays is None or cache_location is None):
            raise ValueError(
                "loader_arrays may be left out only where a cache has everything: with both "
                "cache_arrays and cache_location"
            )
        if shuffle_later == "default":
            shuffle_later = "itemwise" if cache_location is None else "batchwise"
        batch_size = whole_number("batch_size", batch_size, at_least=1)
        self._data = _sequence(data)
        if len(self._data) == 0:
            raise ValueError("data is empty: it has 0 items, and a group needs one at least")
        self._items: Sequence[Any] = self._data
        if cache is not None:
            self._items = _cached(cache, len(self._data))
        self._order = GroupOrder(
            len(self._data),
            batch_size,
            seed=seed,
            shuffle_first=bool(shuffle_first),
            shuffle_later=cast("ShuffleLater", shuffle_later),
            drop_remainder=bool(drop_remainder),
        )
        self._loader = _layouts(loader_arrays, batch_size, "loader_arrays")
        self._cache = _layouts(cache_arrays, batch_size, "cache_arrays")
        self._cache_location = _location(cache_location)
        self._cache_policy = CachePolicy(
            bool(cache_readonly) or loader_arrays is None,
            bool(cache_verify),
            bool(allow_pickle),
            _version(data_version),
        )

    def __repr__(self) -> str:
        arrays = list(self._loader or self._cache or ())
        return f"<DataGroup: {len(self)} items in batches of {self.batch_size}, arrays {arrays}>"

    def __len__(self) -> int:
        return self._order.length

    @overload
    def __getitem__(self, index: int) -> D: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[D]: ...
    def __getitem__(self, index: int | slice) -> D | Sequence[D]:
        if _is_built_in(self._data):
            return self._data[index]
        # A sequence of the user's may know neither slices nor its own end.
        position = range(len(self))[index]
        if isinstance(position, int):
            return self._data[position]
        return [self._data[k] for k in position]

    def __getstate__(self) -> dict[str, Any]:
        plain = {name: None if v is None else dict(v) for name, v in self._proxies().items()}
        return {**self.__dict__, **plain}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name, value in self._proxies().items():
            self.__dict__[name] = None if value is None else MappingProxyType(value)

    def _proxies(self) -> dict[str, Any]:
        return {"_loader": self._loader, "_cache": self._cache}

    def __iter__(self) -> Iterator[D]:
        # By index and length: data may be a sequence that goes on behind its end.
        return (self._data[index] for index in range(len(self)))

    def __contains__(self, value: object) -> bool:
        return any(item is value or item == value for item in self)

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the first index of ``value``; raises ValueError if it is not there."""
        for index in range(len(self))[start:stop]:
            item = self._data[index]
            if item is value or item == value:
                return index
        raise ValueError(f"{value!r} is not in the group")

    def count(self, value: Any) -> int:
        """Return how often ``value`` occurs."""
        return sum(item is value or item == value for item in self)

    @property
    def batch_count(self) -> int:
        """The number of batches in an epoch of this group."""
        return self._order.batch_count

    @property
    def batch_size(self) -> int:
        """The number of items in a batch."""
        return self._order.batch_size

    @property
    def data(self) -> Sequence[D]:
        """The items' descriptors."""
        return self._data

    @property
    def order(self) -> GroupOrder:
        """Which items each batch of each epoch holds: a value that other layers plan by."""
        return self._order

    @property
    def loader_layouts(self) -> Layouts | None:
        """``{name: (shape, numpy_dtype, jax_dtype, offset, count)}`` of a batch as loaded.

        Shapes include the batch dimension, offsets are in bytes, counts in elements.
        """
        return self._loader

    @property
    def loader_size(self) -> int | None:
        """The bytes of one loaded batch, or None without ``loader_arrays``."""
        return None if self._loader is None else layout_bytes(self._loader)

    @property
    def cache_layouts(self) -> Layouts | None:
        """The same as `loader_layouts`, for a batch as cached."""
        if self._cache is None and self._cache_location is not None:
            return self._loader
        return self._cache

    @property
    def cache_size(self) -> int | None:
        """The bytes of one cached batch, or None without ``cache_arrays``."""
        return None if self._cache is None else layout_bytes(self._cache)

    @property
    def cache_location(self) -> Path | None:
        """The directory of the cache, if there is one."""
        return self._cache_location

    @property
    def cache_readonly(self) -> bool:
        """Whether the cache is only read."""
        return self._cache_policy.readonly

    @property
    def cache_policy(self) -> CachePolicy:
        """How the cache on disk is to be used."""
        return self._cache_policy

    def layouts_of(self, rows: int, *, cached: bool) -> Layouts | None:
        """Return the layouts of a batch of ``rows`` rows, as cached or as loaded."""
        layouts = self.cache_layouts if cached else self._loader
        if layouts is None or rows == self.batch_size:
            return layouts
        return take_rows(layouts, rows)

    def take(self, indices: range | np.ndarray) -> Sequence[D]:
        """Return the items with ``indices``."""
        return gather(self._items, indices)

    def take_is_quick(self, rows: int) -> bool:
        """Tell whether taking ``rows`` items costs little: no code of the user's runs."""
        return _is_built_in(self._items) and rows <= _QUICK_ROWS


def gather(data: Sequence[Any], indices: range | np.ndarray) -> Sequence[Any]:
    """Return ``[data[i] for i in indices]``, without a Python loop where data allow it.

    >>> gather(range(100, 200), np.array([3, 1])), gather("abcdef", range(2, 4))
    ([103, 101], 'cd')
    """
    array: Any = data
    if isinstance(indices, range) and indices.step == 1:
        if _is_built_in(array):
            return array[indices.start : indices.stop]  # type: ignore[no-any-return]
    elif isinstance(array, np.ndarray):
        return array[np.asarray(indices)]  # type: ignore[no-any-return]
    positions = indices.tolist() if isinstance(indices, np.ndarray) else indices
    if type(data) is range:
        start, step = data.start, data.step
        return [start + step * i for i in positions]
    if type(data) in (list, tuple) and len(positions) > 1:
        return operator.itemgetter(*positions)(data)  # type: ignore[no-any-return]
    return [data[i] for i in positions]


def _sequence(data: Iterable[D] | Indexable[D]) -> Sequence[D]:
    if isinstance(data, Mapping):
        raise TypeError("data is a mapping: pass list(data) for its keys, or its .items()")
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return cast("Sequence[D]", data)
    try:
        items = iter(data)
    except TypeError:
        raise TypeError(f"data={data!r} must be a sequence or an iterable") from None
    return list(items)


def _cached(cache: Any, length: int) -> Sequence[Any]:
    if not (hasattr(cache, "__len__") and hasattr(cache, "__getitem__")):
        raise TypeError(f"cache={cache!r} must have items by index, and a length")
    if len(cache) != length:
        raise ValueError(f"cache={cache!r} has {len(cache)} items, and data has {length}")
    return cast("Sequence[Any]", cache)


def _is_built_in(data: object) -> bool:
    # A subclass may answer otherwise than the class that it extends.
    return type(data) in _BUILT_IN or isinstance(data, np.ndarray)


def _location(location: Any) -> Path | None:
    if location is None:
        return None
    if not isinstance(location, str | os.PathLike):
        raise TypeError(f"cache_location={location!r} must be a path")
    return Path(location)


def _version(version: Any) -> str | int | None:
    if isinstance(version, bool) or not isinstance(version, str | int | None):
        raise TypeError(f"data_version={version!r} must be a string, a whole number or None")
    return version


def _layouts(arrays: Any, batch_size: int, parameter: str) -> Layouts | None:
    return None if arrays is None else make_layouts(arrays, batch_size, parameter)
