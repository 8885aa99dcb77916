"""What workers do: elements of a `MapDataset`, and stages that need nothing but the element."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, final

from aioloader._datasets.cargo import Cargo, Loader
from aioloader._datasets.iter_stages import Each, Filtering
from aioloader._executors.failures import Failure
from aioloader._executors.worker import worker_index
from aioloader.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from aioloader.protocols import Arrays

__all__ = [
    "KEPT",
    "Made",
    "Order",
    "Recipe",
    "Rest",
    "Startup",
    "failed_at",
    "is_counting",
    "mark_of",
    "pass_over",
    "restored",
    "split",
]

_RUN_BYTES = 64 * 1024

KEPT = 0
"""The mark of an element that came through. Others say how far it came (see `failed_at`)."""


class Order(NamedTuple):
    """Which elements a worker is to make: those from ``start`` to ``stop``.

    ``skips`` has a number for each stage that counts its elements: how many it did not get to
    see before ``start``. ``payloads`` are what was fetched for them, if anything was.
    """

    start: int
    stop: int
    skips: tuple[int, ...]
    payloads: tuple[Any, ...] | None = None


class Made(NamedTuple):
    """What came of an `Order`: what was kept or failed as `Cargo`, and a mark for each element."""

    cargo: Cargo
    marks: bytes
    seconds: float
    largest: int


def mark_of(level: int, *, failed: bool) -> int:
    """Return the mark of an element that came no further than to ``level``, above `KEPT`."""
    return 1 + 2 * level + failed


def failed_at(mark: int) -> tuple[int, bool]:
    """Return the level at which an element was left out, and whether it failed there.

    The level is 0 for the `MapDataset`, and counts stages from there on.

    >>> failed_at(mark_of(3, failed=True)), failed_at(mark_of(0, failed=False))
    ((3, True), (0, False))
    """
    return (mark - 1) // 2, not mark % 2


@final
@dataclass(frozen=True, eq=False)
class Rest:
    """The plain stages of a `MapDataset` whose other stages are awaited in the program.

    ``steps`` are those stages without their parents, the last one first.
    """

    steps: tuple[Any, ...]

    def places(self, index: int) -> list[int]:
        """Return the indices of the elements that have to be awaited for one element."""
        places = [index]
        for step in self.steps:
            places = [place for i in places for _, place in step.parent_indices(i)]
        return places

    def build(self, index: int, awaited: Iterator[Any], level: int = 0) -> Any:
        """Return the element that is made of those."""
        if level == len(self.steps):
            return next(awaited)
        step = self.steps[level]
        parts = [self.build(i, awaited, level + 1) for _, i in step.parent_indices(index)]
        return step.finish(index, parts)


def split(dataset: Any) -> tuple[Any, Rest]:
    """Return the part of a `MapDataset` that has to be awaited, and the plain rest behind it."""
    steps = []
    while len(dataset._parents) == 1 and dataset._parents[0]._is_async:
        step = getattr(dataset, "_step", None)
        if step is None or step.is_async:
            break
        step = copy.copy(step)
        step.parents, step._parent = (), None  # workers need not have what is awaited
        steps.append(step)
        (dataset,) = dataset._parents
    return dataset, Rest(tuple(steps))


@final
@dataclass(frozen=True, eq=False)
class Recipe:
    """Makes what an `Order` says, and writes it into a slot.

    ``dataset`` is a `MapDataset`, or the `Rest` of one.
    """

    dataset: Any
    allow_nones: bool
    stages: tuple[Each | Filtering, ...]

    def __call__(self, order: Order, arrays: Arrays, seed: int | None) -> dict[str, object]:
        began = time.perf_counter()
        (memory,) = arrays.values()
        loading = _Loading(Loader(memory), mark_of(len(self.stages), failed=True))
        for mark, element in self._make(order):
            loading.add(mark, element)
            del element  # its memory is warm: the next one should get it
        cargo, marks, sent = loading.finish()
        seconds = time.perf_counter() - began
        return {"made": Made(cargo, marks, seconds, cargo.nbytes // max(sent, 1))}

    def _make(self, order: Order) -> Iterator[tuple[int, Any]]:
        skips = list(order.skips)
        stages = _compiled(self.stages)
        for index in range(order.start, order.stop):
            level = 0
            try:
                element, failure = self._source(order, index)
                if failure is None and (element is not None or self.allow_nones):
                    for counter, function in stages:
                        level += 1
                        if counter is None:
                            if not function(element):
                                break
                        else:
                            element = function(index - (skips[counter] if skips else 0), (element,))
                    else:
                        yield KEPT, element
                        del element
                        continue
            except BaseException as error:
                failure = Failure.capture(error)
            yield mark_of(level, failed=failure is not None), failure
            pass_over(self.stages, skips, level)

    def _source(self, order: Order, index: int) -> tuple[Any, Failure | None]:
        if order.payloads is None:
            return self.dataset[index], None
        payload = order.payloads[index - order.start]
        if isinstance(payload, Failure):
            return None, payload
        return self.dataset.build(index, iter(payload)), None


def is_counting(stage: Each | Filtering) -> bool:
    """Tell whether a stage counts elements."""
    return isinstance(stage, Each) and stage.key is not None


def pass_over(stages: Sequence[Each | Filtering], skips: list[int], level: int) -> None:
    """Note that an element came no further than to ``level``: stages behind did not count it."""
    counter = 0
    for number, stage in enumerate(stages, 1):
        if is_counting(stage):
            skips[counter] += number > level
            counter += 1


def _compiled(
    stages: Sequence[Each | Filtering],
) -> list[tuple[int | None, Callable[..., Any]]]:
    """Return what is called for each stage, and for `Each` which of ``skips`` is its own."""
    compiled: list[tuple[int | None, Callable[..., Any]]] = []
    counter = 0
    for stage in stages:
        if isinstance(stage, Filtering):
            compiled.append((None, stage.function))
        else:
            compiled.append((counter if is_counting(stage) else 0, stage.step.finish))
            counter += is_counting(stage)
    return compiled


@final
class _Loading:
    """Loads what is made, in runs of about `_RUN_BYTES`; elements that do not travel fail."""

    def __init__(self, loader: Loader, unsent: int) -> None:
        self._loader = loader
        self._unsent = unsent
        self._marks = bytearray()
        self._run: list[Any] = []
        self._where: list[int] = []
        self._length = 1
        self._sent = 0

    def add(self, mark: int, element: Any) -> None:
        if mark == KEPT or failed_at(mark)[1]:
            self._run.append(element)
            self._where.append(len(self._marks))
        self._marks.append(mark)
        if len(self._run) >= self._length:
            self._send()

    def finish(self) -> tuple[Cargo, bytes, int]:
        if self._run:
            self._send()
        marks = bytes(self._marks) if any(self._marks) else b""
        return self._loader.finish(), marks, self._sent

    def _send(self) -> None:
        run, loader, before = self._run, self._loader, self._loader.nbytes
        try:
            loader.add(run)
        except Exception:
            for element, place in zip(run, self._where, strict=True):
                try:
                    loader.add([element])
                except Exception as error:
                    error.add_note("this element cannot be sent from a worker to the program")
                    self._marks[place] = self._unsent
                    loader.add([Failure.capture(error)])
        self._sent += len(run)
        average = (loader.nbytes - before) / len(run)
        self._length = int(min(max(_RUN_BYTES / max(average, 1), 1), 4 * self._length))
        self._run, self._where = [], []


def restored(failure: Failure) -> Exception:
    """Return the exception that was raised in a worker, or one in its place, with its traceback."""
    cause = failure.to_item_error(0).__cause__
    if isinstance(cause, Exception):
        error = cause
    else:  # it does not travel, or would end the program
        error = LoadError(f"an element could not be made: {failure.summary}")
        error.__cause__ = cause
    error.add_note(f"Where it happened, in a worker:\n{failure.remote_traceback}")
    return error


@final
@dataclass(frozen=True, eq=False)
class Startup:
    """Calls the user's ``worker_init_fn(index, count)`` in a worker."""

    function: Callable[[int, int], object]
    first: int
    count: int

    def __call__(self) -> None:
        self.function(self.first + worker_index(), self.count)
