"""Workers: the elements of an `IterDataset`, made by processes as far as that changes nothing."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, final

from aioloader._datasets.filtering import Removals
from aioloader._datasets.foreign import opened
from aioloader._datasets.iter_stages import Each, Filtering, Same, WithOptions
from aioloader._datasets.transforms import is_coroutine
from aioloader._datasets.worker_epoch import Crew, Manning
from aioloader._datasets.worker_iterator import WorkerIterator
from aioloader._datasets.worker_recipe import Recipe, Startup, is_counting, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aioloader._datasets.interleaving import Interleaving
    from aioloader._datasets.iter_stages import Stage
    from aioloader._datasets.iterators import DatasetIterator
    from aioloader._datasets.options import DatasetOptions, MultiprocessingOptions

__all__ = ["prefetch_in_workers"]


def prefetch_in_workers(
    dataset: Any,
    options: MultiprocessingOptions,
    worker_init_fn: Callable[[int, int], None] | None,
) -> Stage:
    """Return the stage after ``dataset`` that makes its elements in worker processes.

    Those of each `MapDataset` at the bottom are made by workers, together with what the next
    stages make of each element by itself. Stages from the first one on that depends on other
    elements (batches, filters and what counts after them, mixtures) stay in the program, so
    that nothing depends on who works. Several such datasets share the workers; where there are
    more of them than workers, the last ones stay in the program, too. Of datasets that are
    opened one after the other (see `InterleaveIterDataset`) each has workers of its own while
    it is in use, as many as it can have of all.

    Workers start with the first element that is asked for, and are kept for the next iterator.
    They end with `DatasetIterator.close`, and with the dataset.
    """
    if worker_init_fn is not None and not callable(worker_init_fn):
        raise TypeError(f"worker_init_fn={worker_init_fn!r} is not callable")
    return _InWorkers(dataset, options, worker_init_fn)


@final
class _InWorkers:
    """The stage: which parts of a pipeline workers make."""

    def __init__(
        self,
        dataset: Any,
        options: MultiprocessingOptions,
        worker_init_fn: Callable[[int, int], None] | None,
        place: tuple[int, int] | None = None,
    ) -> None:
        self._arguments = (dataset, options, worker_init_fn, place)
        self._options = options
        lines: list[_Line] = []
        lazy: list[_Opening] = []
        self.plan = _plan(dataset, lines, lazy)
        self.has_work = bool(lines or lazy) or _reads(dataset)
        before, total = place or (0, options.num_workers)
        count = min(len(lines), options.num_workers)  # others are made in the program
        share, more = divmod(options.num_workers, max(count, 1))
        numbers = [share + (k < more) for k in range(count)]
        for k, (line, number) in enumerate(zip(lines, numbers, strict=False)):
            startup = None
            if worker_init_fn is not None:
                startup = Startup(worker_init_fn, before + sum(numbers[:k]), total)
            line.hire(Manning(number, options.per_worker_buffer_size, startup))
        for opening in lazy[: not lines]:
            opening.hire(options, worker_init_fn, before, total)

    def begin(self, parents: Sequence[Any]) -> DatasetIterator[Any]:
        """Return an iterator; workers begin when it is first asked for an element."""
        if not self.has_work and self._options.num_workers > 1:
            raise ValueError(
                f"Cannot slice `IterDataset` source {self._arguments[0]!r}: several workers need "
                "a MapDataset to share, whose elements have an index"
            )
        return self.plan.begin()

    def __reduce__(self) -> tuple[Any, ...]:
        return _InWorkers, self._arguments

    def __repr__(self) -> str:
        return f"mp_prefetch(num_workers={self._options.num_workers})"


class _Plan(Protocol):
    """How the iterator of one stage is to be made."""

    def begin(self) -> DatasetIterator[Any]: ...


def _plan(dataset: Any, lines: list[_Line], lazy: list[_Opening]) -> _Plan:
    line = _line(dataset)
    if line is not None:
        lines.append(line)
        return line
    if getattr(_stage(dataset), "lazy", None) is not None:
        lazy.append(_Opening(_stage(dataset)))
        return lazy[-1]
    if not dataset._parents or _is_reading(dataset) or isinstance(_stage(dataset), _InWorkers):
        return _AsItIs(dataset)
    return _Inner(dataset, tuple(_plan(parent, lines, lazy) for parent in dataset._parents))


def _stage(dataset: Any) -> Any:
    return getattr(dataset, "_stage", None)


def _is_reading(dataset: Any) -> bool:
    return hasattr(_stage(dataset), "allow_nones")


def _reads(dataset: Any) -> bool:
    return _is_reading(dataset) or any(_reads(p) for p in dataset._parents if _stage(dataset))


@final
@dataclass(frozen=True)
class _AsItIs:
    """A dataset in which workers have no part."""

    dataset: Any

    def begin(self) -> DatasetIterator[Any]:
        return opened(self.dataset)


@final
@dataclass(frozen=True)
class _Inner:
    """A stage that stays in the program, after others."""

    dataset: Any
    parents: tuple[_Plan, ...]

    def begin(self) -> DatasetIterator[Any]:
        parents = tuple(_StandIn(plan) for plan in self.parents)
        stage = _stage(self.dataset)
        if stage is not None:
            return stage.begin(parents)  # type: ignore[no-any-return]
        dataset = copy.copy(self.dataset)  # a class of the user's, which asks its parents
        dataset._parents = parents
        return opened(dataset)


@final
class _StandIn:
    """In the place of a parent: iterates as planned."""

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan

    def __iter__(self) -> Iterator[Any]:
        return self._plan.begin()


@final
class _Opening:
    """Datasets that are opened one after the other, in the places of a cycle."""

    def __init__(self, stage: Interleaving) -> None:
        self._stage = stage

    def hire(
        self,
        options: MultiprocessingOptions,
        worker_init_fn: Callable[[int, int], None] | None,
        before: int,
        total: int,
    ) -> None:
        """Divide workers among the places; those that get none do without."""
        places = min(self._stage.cycle_length, options.num_workers)
        share, more = divmod(options.num_workers, places)

        def manned(seat: int, part: Any) -> Any:
            number = share + (seat < more)
            first = share * seat + min(seat, more)
            if seat >= places or not hasattr(part, "_parents"):
                return part
            its = replace(options, num_workers=number)
            stage = _InWorkers(part, its, worker_init_fn, (before + first, total))
            return _StandIn(stage.plan) if stage.has_work else part

        self._stage = replace(self._stage, manned=manned)

    def begin(self) -> DatasetIterator[Any]:
        """Return an iterator."""
        return self._stage.begin(())


@final
class _Line:
    """A `MapDataset`, and the stages after it that workers apply."""

    def __init__(
        self, dataset: Any, reading: Any, stages: list[Any], options: list[DatasetOptions]
    ) -> None:
        self._dataset = dataset
        (self._source,) = reading._parents
        self._reading = _stage(reading)
        self._stages = tuple(stages)
        self._options = options
        self._crew: Crew | None = None

    def hire(self, manning: Manning) -> None:
        """Take workers on, who begin later."""
        source, awaited = self._source, None
        if source._is_async:
            awaited, source = split(source)
        recipe = Recipe(source, self._reading.allow_nones, self._stages)
        width = max(self._reading.options.num_threads, 1)
        self._crew = Crew(recipe, manning, awaited, width)

    def begin(self) -> DatasetIterator[Any]:
        """Return an iterator."""
        if self._crew is None:
            return opened(self._dataset)
        removals = [
            (level, Removals(repr(stage)))
            for level, stage in enumerate(self._stages, 1)
            if isinstance(stage, Filtering)
        ]
        if not self._reading.allow_nones:
            removals.insert(0, (0, Removals(repr(self._source))))
        iterator = WorkerIterator[Any](self._crew, len(self._source), self._stages, removals)
        iterator._read_options = self._reading.options
        for options in self._options:
            iterator._apply(options)
        return iterator


def _line(dataset: Any) -> _Line | None:
    """Return how workers make all of a dataset, or None where they cannot."""
    stages: list[Any] = []
    options: list[DatasetOptions] = []
    whole = dataset
    while not _is_reading(dataset):
        stage = _stage(dataset)
        if isinstance(stage, WithOptions):
            options.append(stage.options)
        elif _is_plain(stage):
            stages.append(stage)
        elif not isinstance(stage, Same):
            return None
        (dataset,) = dataset._parents
    stages.reverse()
    options.reverse()
    (source,) = dataset._parents
    loses = not _stage(dataset).allow_nones and source._is_sparse
    for stage in stages:
        if loses and is_counting(stage):
            return None  # it counts what is left
        loses = loses or isinstance(stage, Filtering)
    if source._is_async and not stages and not split(source)[1].steps:
        return None  # nothing is left to do for workers
    return _Line(whole, dataset, stages, options)


def _is_plain(stage: Any) -> bool:
    if isinstance(stage, Each):
        return not stage.step.is_async
    return isinstance(stage, Filtering) and not is_coroutine(stage.function)
