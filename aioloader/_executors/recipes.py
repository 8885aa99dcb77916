"""Recipes: run the user's ``load`` over rows of a slot, wherever that is."""

from __future__ import annotations

import functools
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, final

from aioloader._executors.failures import short
from aioloader.protocols import Extras, Filled

if TYPE_CHECKING:
    from aioloader._memory.layout import RowViews

__all__ = [
    "BEAT",
    "Columns",
    "Progress",
    "RowFailed",
    "backoff_seconds",
    "fill_rows",
    "fill_spans",
    "is_coroutine_function",
    "spans",
]


BEAT = 1 << 40
"""What is added to a row's number for a sign of life: the remainder is the row."""

_BEAT_SECONDS = 0.01


class Progress(Protocol):
    """Where a recipe says which row comes next, by ``progress[0] = row``."""

    # A call for each row would cost more than all else that is done for a tiny item.
    def __setitem__(self, place: int, row: int, /) -> None:
        """Take the row's number; what this raises ends the recipe."""


class RowFailed(Exception):
    """``load`` raised ``error`` for ``row``."""

    def __init__(self, row: int, error: BaseException) -> None:
        super().__init__(row)
        self.row = row
        self.error = error


@final
class Columns:
    """Additional data, gathered column by column: ``{key: [value of each row, or None]}``."""

    __slots__ = ("_columns", "_length")

    def __init__(self, length: int) -> None:
        self._length = length
        self._columns: dict[str, list[object]] = {}

    def put(self, position: int, returned: object) -> None:
        """Take what ``load`` returned for one row."""
        if returned is None:
            return
        for key, value in _mapping(returned).items():
            self._column(key)[position] = value

    def put_many(self, positions: Sequence[int], returned: object) -> None:
        """Take columns: a mapping of sequences with a value for each position."""
        if returned is None:
            return
        for key, values in _mapping(returned).items():
            if len(values) != len(positions):
                raise ValueError(
                    f"load returned {len(values)} values for key {key!r}, "
                    f"and there are {len(positions)} rows"
                )
            column = self._column(key)
            for position, value in zip(positions, values, strict=True):
                column[position] = value

    def result(self) -> Extras | None:
        """Return the columns, or None if no row returned anything."""
        return self._columns or None

    def _column(self, key: object) -> list[object]:
        if not isinstance(key, str):
            raise TypeError(f"load returned the key {key!r}; keys are strings")
        if key not in self._columns:
            self._columns[key] = [None] * self._length
        return self._columns[key]


def fill_rows(
    load: Callable[..., Any],
    views: RowViews,
    rows: Sequence[int],
    items: Sequence[object],
    seeds: Sequence[int | None],
    progress: Progress,
    retries: int = 0,
) -> Filled:
    """Call ``load`` for each row; ``progress[0]`` is set to a row before its item is touched.

    While a row waits for its next try it is set again and again, each time to one `BEAT` more.
    Raises :class:`RowFailed` for the first row that fails ``retries + 1`` times.
    """
    columns = Columns(len(rows))
    retried, position = 0, -1
    started = time.perf_counter()
    # Tiny items cost less than what would be easier to read here.
    for row, item, seed, arrays in zip(rows, items, seeds, views.take(rows), strict=True):
        progress[0] = row
        position += 1
        try:
            returned = load(item, arrays, seed)
            if returned is not None:
                columns.put(position, returned)
        except BaseException as error:
            again = functools.partial(_fill_row, columns, position, load, item, arrays, seed)
            retried += _retry(again, error, row, progress, retries)
    return Filled(columns.result(), time.perf_counter() - started, retried)


def fill_spans(
    load: Callable[..., Any],
    views: RowViews,
    rows: Sequence[int],
    items: Sequence[object],
    seeds: Sequence[int | None],
    progress: Progress,
    retries: int = 0,
) -> Filled:
    """Call a vectorised ``load`` for each run of neighbouring rows; else like `fill_rows`."""
    columns = Columns(len(rows))
    retried = 0
    started = time.perf_counter()
    for first, last in spans(rows):
        start = rows[first]
        progress[0] = start
        arrays = views.span(start, rows[last - 1] + 1)
        given = items[first:last], arrays, list(seeds[first:last])
        attempt = functools.partial(_fill_span, columns, range(first, last), load, *given)
        try:
            attempt()
        except BaseException as error:
            retried += _retry(attempt, error, start, progress, retries)
    return Filled(columns.result(), time.perf_counter() - started, retried)


def spans(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut ``rows`` where neighbours are not neighbours: positions ``(first, last + 1)``.

    >>> list(spans([0, 1, 2, 5, 6, 9]))
    [(0, 3), (3, 5), (5, 6)]
    """
    if isinstance(rows, range) and rows.step == 1:
        if rows:
            yield 0, len(rows)
        return
    first = 0
    for position in range(1, len(rows) + 1):
        if position == len(rows) or rows[position] != rows[position - 1] + 1:
            yield first, position
            first = position


def backoff_seconds(attempt: int) -> float:
    """Return how long to wait before try number ``attempt`` (1 is the first retry).

    >>> [backoff_seconds(n) for n in (1, 2, 3, 9)]
    [0.05, 0.1, 0.2, 2.0]
    """
    return float(min(0.05 * 2 ** (attempt - 1), 2.0))


def is_coroutine_function(function: object) -> bool:
    """Tell whether calling ``function`` gives a coroutine; partials and callables count too."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(function):
        return True
    return inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _fill_row(
    columns: Columns, position: int, load: Callable[..., Any], item: Any, arrays: Any, seed: Any
) -> None:
    columns.put(position, load(item, arrays, seed))


def _fill_span(
    columns: Columns,
    positions: range,
    load: Callable[..., Any],
    items: Any,
    arrays: Any,
    seeds: Any,
) -> None:
    columns.put_many(positions, load(items, arrays, seeds))


def _retry(
    attempt: Callable[[], None],
    error: BaseException,
    row: int,
    progress: Progress,
    retries: int,
) -> int:
    """Try again after ``error``; returns how often, or raises RowFailed."""
    latest = error
    for tried in range(1, retries + 1):
        if not isinstance(latest, Exception):
            break
        _pause(backoff_seconds(tried), progress, row)
        try:
            attempt()
        except BaseException as another:
            latest = another
        else:
            return tried
    try:
        raise RowFailed(row, latest) from latest
    finally:
        # An error that its own frames refer to keeps a slot until the next garbage collection.
        del error, latest, attempt


def _pause(seconds: float, progress: Progress, row: int) -> None:
    # Waiting for the next try is no sign of an item that hangs: the heart goes on beating.
    for beat in range(1, math.ceil(seconds / _BEAT_SECONDS) + 1):
        progress[0] = row + beat * BEAT
        time.sleep(_BEAT_SECONDS)
    progress[0] = row


def _mapping(returned: object) -> Mapping[Any, Any]:
    if isinstance(returned, Mapping):
        return returned
    raise TypeError(
        f"load must return a mapping of additional data or None, it returned {short(returned)}"
    )
