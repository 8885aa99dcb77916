"""Extras: the datasets that Grain has beside its methods, under its names, for `pipe`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, final

from aioloader._datasets.base import Dataset, require_seed
from aioloader._datasets.bins import PackingPlan
from aioloader._datasets.combining import Zipping
from aioloader._datasets.extents import Limiting, Repeating
from aioloader._datasets.flattening import FlatMapping
from aioloader._datasets.interleaving import Buffers, Interleaving
from aioloader._datasets.iter_dataset import IterDataset, StagedIterDataset
from aioloader._datasets.packing import Packing
from aioloader._datasets.rebatching import Rebatching
from aioloader._datasets.splitting import BOSHandling, Splitting, SplittingPlan
from aioloader._datasets.windows import WindowShuffling
from aioloader._order.arguments import whole_number

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = [
    "BestFitPackIterDataset",
    "ConcatThenSplitIterDataset",
    "FirstFitPackIterDataset",
    "FlatMapIterDataset",
    "InterleaveIterDataset",
    "LimitIterDataset",
    "RebatchIterDataset",
    "RepeatIterDataset",
    "UnbatchIterDataset",
    "WindowShuffleIterDataset",
    "ZipIterDataset",
]

T = TypeVar("T")


@final
class ZipIterDataset(StagedIterDataset[tuple[Any, ...]]):
    """Tuples of one element of each dataset.

    An exception of one of them takes the place of the tuple; the others go on, too.

    >>> from aioloader import MapDataset
    >>> numbers, letters = MapDataset.range(3), MapDataset.source("abc")
    >>> list(ZipIterDataset([numbers.to_iter_dataset(), letters.to_iter_dataset()]))
    [(0, 'a'), (1, 'b'), (2, 'c')]

    Args:
        parents: The datasets.
        strict: Whether it is a ValueError where one ends before another.
    """

    def __init__(self, parents: Sequence[IterDataset[Any]], *, strict: bool = True) -> None:
        if not parents:
            raise ValueError("parents is empty: there is nothing to zip")
        super().__init__(Zipping(strict), _checked("parents", parents))


@final
class InterleaveIterDataset(StagedIterDataset[T]):
    """Elements of up to ``cycle_length`` datasets in turn, until all have ended.

    One after the other for ``cycle_length=1``. Where one has ended the next takes its place.

    >>> from aioloader import MapDataset
    >>> parts = [MapDataset.range(0, 3), MapDataset.range(10, 12), MapDataset.range(20, 22)]
    >>> list(InterleaveIterDataset(parts, cycle_length=2))
    [0, 10, 1, 11, 2, 20, 21]

    Args:
        datasets: The datasets, or a `MapDataset` of datasets, such as
            ``MapDataset.source(paths).map(open_dataset)``, whose elements are made as they are
            needed: the first ``cycle_length`` when iteration begins. `IterDataset.mp_prefetch`
            divides its workers among those in use, and starts them anew for each.
        cycle_length: How many are in use at once.
        num_make_iter_threads: How many threads open datasets of a `MapDataset` of datasets.
        make_iter_buffer_size: How many of those are opened before their turn.
        iter_buffer_size: How many elements of each dataset in use are made ahead: of an
            `IterDataset` beyond what it does on its own, by a task, and from 2 on.
    """

    def __init__(
        self,
        datasets: Any,
        *,
        cycle_length: int,
        num_make_iter_threads: int = 1,
        make_iter_buffer_size: int = 1,
        iter_buffer_size: int = 1,
    ) -> None:
        length = whole_number("cycle_length", cycle_length, at_least=1)
        buffers = Buffers(
            whole_number("num_make_iter_threads", num_make_iter_threads, at_least=0),
            whole_number("make_iter_buffer_size", make_iter_buffer_size, at_least=0),
            whole_number("iter_buffer_size", iter_buffer_size, at_least=0),
        )
        if isinstance(datasets, Dataset):
            super().__init__(Interleaving(length, buffers, datasets), ())
        else:
            options = buffers.read_options
            parts = [p.to_iter_dataset(options) if _has_index(p) else p for p in datasets]
            super().__init__(Interleaving(length, buffers), _checked("datasets", parts))


@final
class FlatMapIterDataset(StagedIterDataset[Any]):
    """All elements that ``transform`` makes of each one.

    >>> from aioloader import MapDataset
    >>> dataset = MapDataset.range(4).to_iter_dataset()
    >>> list(dataset.pipe(FlatMapIterDataset, lambda x: [x] * x))
    [1, 2, 2, 3, 3, 3]

    Args:
        parent: The dataset.
        transform: A function that returns any iterable, a coroutine function, or an instance of
            `FlatMap`. After a restored position it is called again for the element it was at.
    """

    def __init__(self, parent: IterDataset[Any], transform: Any) -> None:
        super().__init__(FlatMapping.of(transform), _checked("parent", [parent]))


@final
class UnbatchIterDataset(StagedIterDataset[Any]):
    """The rows of batches, one by one, as views of them: what `IterDataset.batch` undoes.

    >>> import numpy as np
    >>> from aioloader import MapDataset
    >>> batches = MapDataset.source(np.arange(5)).batch(3).to_iter_dataset()
    >>> [int(x) for x in batches.pipe(UnbatchIterDataset)]
    [0, 1, 2, 3, 4]
    """

    def __init__(self, parent: IterDataset[Any]) -> None:
        super().__init__(FlatMapping.into_rows(), _checked("parent", [parent]))


@final
class RebatchIterDataset(StagedIterDataset[Any]):
    """The rows of batches, in batches of another size.

    >>> import numpy as np
    >>> from aioloader import MapDataset
    >>> batches = MapDataset.source(np.arange(7)).batch(3).to_iter_dataset()
    >>> list(batches.pipe(RebatchIterDataset, 4))
    [array([0, 1, 2, 3]), array([4, 5, 6])]

    Args:
        parent: Batches: pytrees whose leaves have the same first axis.
        batch_size: How many rows the new ones have.
        drop_remainder: Whether a last, smaller batch is left out.
    """

    def __init__(
        self, parent: IterDataset[Any], batch_size: int, drop_remainder: bool = False
    ) -> None:
        stage = Rebatching.of(batch_size, drop_remainder)
        super().__init__(stage, _checked("parent", [parent]))


@final
class WindowShuffleIterDataset(StagedIterDataset[T]):
    """The same elements, each run of ``window_size`` in an order of its own.

    A window is in memory, and is drawn again to restore a position in it.

    >>> from aioloader import MapDataset
    >>> dataset = MapDataset.range(8).to_iter_dataset()
    >>> list(dataset.pipe(WindowShuffleIterDataset, window_size=4, seed=0))
    [2, 1, 3, 0, 4, 7, 6, 5]

    Args:
        parent: The dataset.
        window_size: How many elements are shuffled among each other.
        seed: From 0 to 2**32 - 1; by default it follows from `IterDataset.seed` above.
    """

    def __init__(
        self, parent: IterDataset[T], *, window_size: int, seed: int | None = None
    ) -> None:
        parents = _checked("parent", [parent])
        seed = Dataset(parents)._default_seed if seed is None else seed
        stage = WindowShuffling.of(window_size, require_seed("WindowShuffleIterDataset", seed))
        super().__init__(stage, parents)


@final
class RepeatIterDataset(StagedIterDataset[T]):
    """All elements, several times or for ever, each time the same.

    Repeat a `MapDataset` for epochs that are shuffled anew.

    >>> from aioloader import MapDataset
    >>> list(MapDataset.range(3).to_iter_dataset().pipe(RepeatIterDataset, 2))
    [0, 1, 2, 0, 1, 2]

    Args:
        parent: The dataset; its iterator goes back to its beginning, and so keeps its workers.
        num_epochs: How often; None for ever, unless it is empty.
    """

    def __init__(self, parent: IterDataset[T], num_epochs: int | None = None) -> None:
        super().__init__(Repeating.of(num_epochs), _checked("parent", [parent]))


@final
class LimitIterDataset(StagedIterDataset[T]):
    """The first ``count`` elements.

    >>> from aioloader import MapDataset
    >>> list(MapDataset.range(5).to_iter_dataset().pipe(LimitIterDataset, 2))
    [0, 1]
    """

    def __init__(self, parent: IterDataset[T], count: int) -> None:
        super().__init__(Limiting.of(count), _checked("parent", [parent]))


class _PackIterDataset(StagedIterDataset[dict[str, Any]]):
    _best_fit = False

    def __init__(
        self,
        parent: IterDataset[Any],
        *,
        length_struct: Mapping[str, int],
        num_packing_bins: int,
        seed: int = 0,
        shuffle_bins: bool = True,
        shuffle_bins_group_by_feature: str | None = None,
        meta_features: Sequence[str] = (),
        pack_alignment_struct: Mapping[str, int] | None = None,
        padding_struct: Mapping[str, Any] | None = None,
        max_sequences_per_bin: int | None = None,
    ) -> None:
        plan = PackingPlan(
            length_struct,
            num_packing_bins,
            self._best_fit,
            seed=seed,
            shuffle_bins=shuffle_bins,
            group_by=shuffle_bins_group_by_feature,
            meta_features=tuple(meta_features),
            alignments=pack_alignment_struct or {},
            padding=padding_struct or {},
            max_sequences_per_bin=max_sequences_per_bin,
        )
        super().__init__(Packing(plan.checked()), _checked("parent", [parent]))


@final
class FirstFitPackIterDataset(_PackIterDataset):
    """Sequences packed into rows of fixed lengths, each into the first that has room.

    Bins are filled until an element has no place in any; then all are delivered, row by row.
    Each feature ``x`` becomes an array ``(length, ...)``, with ``x_segment_ids`` (from 1 on; 0 is
    padding) and ``x_positions`` of int32 beside it.

    >>> import numpy as np
    >>> from aioloader import MapDataset
    >>> sequences = [np.full(n, n) for n in (3, 4, 2, 1)]
    >>> dataset = MapDataset.source(sequences).map(lambda x: {"x": x}).to_iter_dataset()
    >>> packed = dataset.pipe(
    ...     FirstFitPackIterDataset, length_struct={"x": 5}, num_packing_bins=2, shuffle_bins=False
    ... )
    >>> for row in packed:
    ...     print(row["x"], row["x_segment_ids"], row["x_positions"])
    [3 3 3 2 2] [1 1 1 2 2] [0 1 2 0 1]
    [4 4 4 4 1] [1 1 1 1 2] [0 1 2 3 0]

    Args:
        parent: Dictionaries of arrays ``(steps, ...)`` or scalars.
        length_struct: How long the row of each feature is; others are left out.
        num_packing_bins: How many rows are filled at once.
        seed: Of the order of rows.
        shuffle_bins: Whether the rows that are filled at once are shuffled.
        shuffle_bins_group_by_feature: A feature by whose mean rows are sorted first.
        meta_features: Features without segment ids and positions; those that are not in
            ``length_struct`` become a list of what the elements of a row have.
        pack_alignment_struct: Multiples at which sequences begin.
        padding_struct: What rows have where there is no sequence, zeros by default.
        max_sequences_per_bin: How many sequences a row may have.
    """


@final
class BestFitPackIterDataset(_PackIterDataset):
    """The same, each sequence into the fullest row that has room for it.

    >>> import numpy as np
    >>> from aioloader import MapDataset
    >>> sequences = [np.full(n, n) for n in (3, 4, 1, 2)]
    >>> dataset = MapDataset.source(sequences).map(lambda x: {"x": x}).to_iter_dataset()
    >>> packed = dataset.pipe(
    ...     BestFitPackIterDataset, length_struct={"x": 5}, num_packing_bins=2, shuffle_bins=False
    ... )
    >>> [row["x"].tolist() for row in packed]
    [[3, 3, 3, 2, 2], [4, 4, 4, 4, 1]]
    """

    _best_fit = True


@final
class ConcatThenSplitIterDataset(StagedIterDataset[dict[str, Any]]):
    """Sequences joined into one, and cut into rows of fixed lengths, without padding in between.

    Where there are several features a row is full when one of them is. What does not fit goes on
    in the next row, as a sequence of its own: segment ids and positions are those in the row.

    >>> import numpy as np
    >>> from aioloader import MapDataset
    >>> sequences = [np.full(n, n) for n in (3, 4, 2)]
    >>> dataset = MapDataset.source(sequences).map(lambda x: {"x": x}).to_iter_dataset()
    >>> for row in dataset.pipe(ConcatThenSplitIterDataset, length_struct={"x": 5}):
    ...     print(row["x"], row["x_segment_ids"], row["x_positions"])
    [3 3 3 4 4] [1 1 1 2 2] [0 1 2 0 1]
    [4 4 2 2 0] [1 1 2 2 0] [0 1 0 1 0]

    Args:
        parent: Dictionaries of arrays ``(steps, ...)`` or scalars, with exactly the features of
            ``length_struct``.
        length_struct: How long the row of each feature is.
        meta_features: Features that are never split, and have no segment ids and positions.
        split_full_length_features: Whether elements that fill a row are split like others; if
            not, they are delivered as they are, after the row that was begun before them.
        bos_handling: What becomes of the first token of each sequence in a row.
        bos_features: The features of which that is.
        bos_token_id: The token that is put there.
    """

    def __init__(
        self,
        parent: IterDataset[Any],
        *,
        length_struct: Mapping[str, int],
        meta_features: Collection[str] = (),
        split_full_length_features: bool = True,
        bos_handling: BOSHandling = BOSHandling.DO_NOTHING,
        bos_features: Collection[str] = (),
        bos_token_id: int | None = None,
    ) -> None:
        plan = SplittingPlan(
            length_struct=length_struct,
            meta_features=tuple(meta_features),
            split_full_length_features=split_full_length_features,
            bos_handling=bos_handling,
            bos_features=tuple(bos_features),
            bos_token_id=bos_token_id,
        )
        super().__init__(Splitting(plan.checked()), _checked("parent", [parent]))


def _checked(argument: str, parents: Sequence[Any]) -> tuple[Any, ...]:
    for parent in parents:
        if not isinstance(parent, IterDataset):
            raise TypeError(f"{argument} must be an IterDataset, got {parent!r}")
    return tuple(parents)


def _has_index(dataset: Any) -> bool:
    return isinstance(dataset, Dataset) and hasattr(dataset, "to_iter_dataset")
