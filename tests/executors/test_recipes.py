"""Recipes: the user's function over rows, its retries, and what it returns."""

from __future__ import annotations

import functools
import gc
import itertools
import time
import weakref
from collections import UserDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioloader._executors.recipes import (
    Columns,
    RowFailed,
    backoff_seconds,
    fill_rows,
    fill_spans,
    is_coroutine_function,
    spans,
)
from aioloader._memory.layout import RowViews


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Wait for nothing between tries, and remember how long it would have been."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def make_views(rows: int = 8) -> tuple[np.ndarray, RowViews]:
    array = np.full(rows, -1, "int64")
    return array, RowViews({"x": array})


class Told:
    """Progress that keeps every row it is told of."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __setitem__(self, place: int, row: int) -> None:
        assert place == 0
        self.rows.append(row)


class Flaky:
    """A load that fails a number of times for some items."""

    def __init__(self, failures: dict[int, int], error: type[BaseException] = ValueError) -> None:
        self.left = dict(failures)
        self.error = error
        self.calls: list[int] = []

    def __call__(self, item: int, arrays: Any, seed: int | None) -> Any:
        self.calls.append(item)
        if self.left.get(item, 0) > 0:
            self.left[item] -= 1
            raise self.error(item)
        arrays["x"][...] = item


# One row at a time --------------------------------------------------------------------------------


def test_every_row_gets_its_item_and_seed() -> None:
    array, views = make_views()

    def load(item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = item * 10 + (seed or 0)

    filled = fill_rows(load, views, [5, 0, 2], [1, 2, 3], [7, None, 8], [-1])
    assert array.tolist() == [20, -1, 38, -1, -1, 17, -1, -1]
    assert filled.extras is None
    assert filled.retries == 0
    assert filled.seconds >= 0


def test_a_row_is_marked_before_its_item_is_touched() -> None:
    """Whoever dies of an item is then known to have been at it."""
    _, views = make_views()
    story: list[Any] = []

    def load(item: str, arrays: Any, seed: int | None) -> None:
        story.append(item)

    fill_rows(load, views, [3, 1], ["a", "b"], [None] * 2, Told(story))
    assert story == [3, "a", 1, "b"]


def test_a_failing_row_is_named_and_ends_the_run() -> None:
    _, views = make_views()
    load = Flaky({12: 1})
    with pytest.raises(RowFailed) as caught:
        fill_rows(load, views, [4, 5, 6], [11, 12, 13], [None] * 3, [-1])
    assert caught.value.row == 5
    assert isinstance(caught.value.error, ValueError)
    assert load.calls == [11, 12]


def test_a_row_may_fail_as_often_as_there_are_retries(slept: list[float]) -> None:
    """The retries are each row's own, they are counted, and the waits between them grow."""
    array, views = make_views()
    load = Flaky({1: 2, 3: 3})
    filled = fill_rows(load, views, range(4), range(4), [None] * 4, [-1], retries=3)
    assert array[:4].tolist() == [0, 1, 2, 3]
    assert filled.retries == 5
    assert load.calls == [0, 1, 1, 1, 2, 3, 3, 3, 3]
    assert sum(slept) == pytest.approx(0.05 + 0.1 + 0.05 + 0.1 + 0.2)


def test_one_failure_more_than_retries_is_an_error() -> None:
    _, views = make_views()
    load = Flaky({1: 3})
    with pytest.raises(RowFailed) as caught:
        fill_rows(load, views, range(4), range(4), [None] * 4, [-1], retries=2)
    assert caught.value.row == 1
    assert load.calls == [0, 1, 1, 1]


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("fill", [fill_rows, fill_spans])
def test_an_error_that_is_dropped_keeps_nothing(
    slept: list[float], fill: Any, retries: int
) -> None:
    """Without a garbage collection: its frames have views of the slot, which has to come back."""
    array, views = make_views()

    def load(*given: Any) -> Any:
        raise ValueError(given[0])

    gc.disable()
    try:
        try:
            fill(load, views, range(2), range(2), [None] * 2, [-1], retries)
        except RowFailed as failed:
            reference = weakref.ref(failed)
        assert reference() is None
        held = weakref.ref(array)
        del array, views
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_programs_is_not_tried_again(error: type[BaseException]) -> None:
    _, views = make_views()
    load = Flaky({0: 1}, error)
    with pytest.raises(RowFailed) as caught:
        fill_rows(load, views, [0], [0], [None], [-1], retries=5)
    assert isinstance(caught.value.error, error)
    assert load.calls == [0]


def test_returned_values_are_columns_with_gaps() -> None:
    """A value for each row that was asked for, None where a row returned no such key."""
    _, views = make_views()

    def load(item: int, arrays: Any, seed: int | None) -> Any:
        returned = {"even": item} if item % 2 == 0 else UserDict({"odd": [item]})
        return None if item == 3 else returned

    filled = fill_rows(load, views, range(5), range(5), [None] * 5, [-1])
    assert filled.extras == {"even": [0, None, 2, None, 4], "odd": [None, [1], None, None, None]}


def test_empty_mappings_bring_no_columns() -> None:
    _, views = make_views()
    filled = fill_rows(lambda *_: {}, views, [0, 1], [0, 1], [None] * 2, [-1])
    assert filled.extras is None


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (5, "must return a mapping.*5"),
        ([("a", 1)], "must return a mapping"),
        ("text", "must return a mapping.*'text'"),
        (np.zeros(3), "must return a mapping"),
        ({1: 2}, "the key 1; keys are strings"),
        ({None: 2}, "keys are strings"),
    ],
    ids=repr,
)
def test_what_is_no_mapping_of_strings_is_an_error(returned: Any, message: str) -> None:
    _, views = make_views()
    with pytest.raises(RowFailed) as caught:
        fill_rows(lambda *_: returned, views, [3], [0], [None], [-1])
    assert caught.value.row == 3
    with pytest.raises(TypeError, match=message):
        raise caught.value.error


def test_a_generator_function_is_an_error_and_not_an_empty_row() -> None:
    """It returns at once and has done nothing."""
    _, views = make_views()

    def load(item: int, arrays: Any, seed: int | None) -> Any:
        arrays["x"][...] = item
        yield

    with pytest.raises(RowFailed) as caught:
        fill_rows(load, views, [0], [0], [None], [-1])
    assert "must return a mapping" in str(caught.value.error)
    assert "generator" in str(caught.value.error)


# A run of rows at a time --------------------------------------------------------------------------


def test_a_vectorised_load_is_called_for_each_run_of_neighbours() -> None:
    array, views = make_views()
    calls: list[Any] = []
    marks: list[int] = []

    def load(items: Any, arrays: Any, seeds: Any) -> Any:
        calls.append((list(items), seeds, arrays["x"].shape))
        arrays["x"][...] = items
        return {"n": [item * 2 for item in items]}

    rows, items = [0, 1, 4, 5, 6], [10, 11, 12, 13, 14]
    filled = fill_spans(load, views, rows, items, [1, 2, 3, 4, 5], Told(marks))
    assert calls == [([10, 11], [1, 2], (2,)), ([12, 13, 14], [3, 4, 5], (3,))]
    assert marks == [0, 4]
    assert array.tolist() == [10, 11, -1, -1, 12, 13, 14, -1]
    assert filled.extras == {"n": [20, 22, 24, 26, 28]}


def test_columns_of_arrays_are_taken_row_by_row() -> None:
    _, views = make_views()
    filled = fill_spans(
        lambda items, *_: {"box": np.arange(len(items) * 2).reshape(-1, 2)},
        *(views, [0, 1, 4], [0, 1, 2], [None] * 3, [-1]),
    )
    assert filled.extras is not None
    assert [list(box) for box in filled.extras["box"]] == [[0, 1], [2, 3], [0, 1]]  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ({"n": [1, 2]}, ValueError, "2 values for key 'n'.*3 rows"),
        ({"n": []}, ValueError, "0 values for key 'n'"),
        ({"n": 5}, TypeError, "."),
        ([1, 2, 3], TypeError, "must return a mapping"),
        ({7: [1, 2, 3]}, TypeError, "keys are strings"),
    ],
    ids=repr,
)
def test_a_column_of_the_wrong_length_is_an_error(
    returned: Any, error: type[Exception], message: str
) -> None:
    _, views = make_views()
    with pytest.raises(RowFailed) as caught:
        fill_spans(lambda *_: returned, views, [2, 3, 4], "abc", [None] * 3, [-1])
    assert caught.value.row == 2
    with pytest.raises(error, match=message):
        raise caught.value.error


def test_runs_are_tried_again_too(slept: list[float]) -> None:
    array, views = make_views()
    failures = iter([True, True, False, True, False])

    def load(items: Any, arrays: Any, seeds: Any) -> None:
        arrays["x"][...] = items
        if next(failures):
            raise ValueError

    filled = fill_spans(load, views, [0, 1, 5], [1, 2, 3], [None] * 3, [-1], retries=2)
    assert filled.retries == 3
    assert sum(slept) == pytest.approx(0.05 + 0.1 + 0.05)
    assert array.tolist() == [1, 2, -1, -1, -1, 3, -1, -1]


def test_a_run_that_goes_on_failing_is_named_by_its_first_row() -> None:
    _, views = make_views()

    def load(items: Any, arrays: Any, seeds: Any) -> None:
        if 3 in items:
            raise ValueError(3)

    with pytest.raises(RowFailed) as caught:
        fill_spans(load, views, [0, 4, 5], [1, 2, 3], [None] * 3, [-1], retries=1)
    assert caught.value.row == 4


@given(st.sets(st.integers(0, 60)))
def test_spans_cover_all_positions_once_and_join_neighbours(chosen: set[int]) -> None:
    rows = sorted(chosen)
    found = list(spans(rows))
    assert [k for a, b in found for k in range(a, b)] == list(range(len(rows)))
    for a, b in found:
        assert rows[a:b] == list(range(rows[a], rows[b - 1] + 1))
    for (_, b), (a, _) in itertools.pairwise(found):
        assert rows[a] > rows[b - 1] + 1


@pytest.mark.parametrize("rows", [range(3, 9), range(0), range(0, 8, 2), range(4, 5)])
def test_spans_of_ranges_are_those_of_lists(rows: range) -> None:
    assert list(spans(rows)) == list(spans(list(rows)))


# The small parts ----------------------------------------------------------------------------------


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(), max_size=3), max_size=8))
def test_columns_are_the_rows_turned_round(rows: list[dict[str, int]]) -> None:
    """Put in any order, in pieces or singly."""
    one, many = Columns(len(rows)), Columns(len(rows))
    for position in reversed(range(len(rows))):
        one.put(position, rows[position])
        many.put_many([position], {key: [value] for key, value in rows[position].items()})
    keys = {key for row in rows for key in row}
    expected = {key: [row.get(key) for row in rows] for key in keys} or None
    assert one.result() == many.result() == expected


def test_waits_between_tries_double_up_to_a_limit() -> None:
    waits = [backoff_seconds(attempt) for attempt in range(1, 12)]
    assert waits[:4] == [0.05, 0.1, 0.2, 0.4]
    assert waits == sorted(waits)
    assert waits[-1] == waits[-2] == 2.0


def test_coroutine_functions_are_known_in_every_dress() -> None:
    async def coroutine(*_: object) -> None: ...
    def plain(*_: object) -> None: ...

    class Asynchronous:
        async def __call__(self, *_: object) -> None: ...
        async def method(self, *_: object) -> None: ...

    yes = [
        coroutine,
        functools.partial(coroutine, 1),
        functools.partial(functools.partial(coroutine, 1), 2),
        Asynchronous(),
        Asynchronous().method,
        functools.partial(Asynchronous(), 1),
    ]
    no = [plain, functools.partial(plain, 1), len, lambda *_: None]
    assert [is_coroutine_function(function) for function in yes] == [True] * len(yes)
    assert [is_coroutine_function(function) for function in no] == [False] * len(no)


def test_a_callable_is_judged_by_its_own_call_and_not_by_what_it_wraps() -> None:
    """Also where it keeps what it wraps under the name that partials use."""

    class Wrapper:
        def __init__(self, func: Any) -> None:
            self.func = func

        def __call__(self, *_: object) -> None: ...

    class AsynchronousWrapper(Wrapper):
        async def __call__(self, *_: object) -> None: ...  # type: ignore[override]

    async def coroutine(*_: object) -> None: ...

    assert not is_coroutine_function(Wrapper(coroutine))
    assert is_coroutine_function(AsynchronousWrapper(len))
