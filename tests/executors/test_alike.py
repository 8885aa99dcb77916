"""What every executor does alike: processes, threads, and coroutines."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest
from executor_bench import KINDS, LAYOUTS, ROWS, all_kinds, bench
from support import until

from aioloader._executors.choosing import choose_executor
from aioloader._executors.coroutines import CoroutineExecutor
from aioloader._executors.process import ProcessExecutor
from aioloader._executors.threads import ThreadExecutor
from aioloader.errors import ItemError
from aioloader.protocols import Seeds, Work

if TYPE_CHECKING:
    from collections.abc import Iterator


def load(item: int, arrays: Any, seed: int | None) -> dict[str, object] | None:
    """Write what depends on item and seed, and return something for every third."""
    arrays["x"][...] = item * 1000 + (0 if seed is None else seed % 1000)
    arrays["y"][:2] = (item, 7)
    return {"third": [item], "seed": seed} if item % 3 == 0 else None


def load_many(items: Any, arrays: Any, seeds: Any) -> dict[str, object]:
    """Write the same for a run of rows."""
    some = [0 if seed is None else seed % 1000 for seed in seeds]
    arrays["x"][...] = [item * 1000 + seed for item, seed in zip(items, some, strict=True)]
    arrays["y"][:, 0] = items
    return {"double": [item * 2 for item in items]}


def fails_for_some(item: Any, arrays: Any, seed: int | None) -> None:
    """Fail for items that are strings; those with a later row fail sooner."""
    if isinstance(item, str):
        raise ValueError(f"cannot load {item}")
    arrays["x"][...] = item


# The same results ---------------------------------------------------------------------------------


@all_kinds
@pytest.mark.parametrize("rows", [range(8), range(2, 5), [0], [7, 2, 3], [1, 4, 6]], ids=str)
async def test_rows_get_their_items_and_seeds(kind: str, rows: Any) -> None:
    """Those rows and no others, with a column of values for each key that was returned."""
    items = [10 + row for row in rows]
    seeds = [row * 7 if row != 4 else None for row in rows]
    async with bench(load, kind) as b:
        result = await b.fill(items, rows=rows, seeds=seeds)
    expected = dict(zip(rows, zip(items, seeds, strict=True), strict=True))
    assert result.x == [
        expected[row][0] * 1000 + (expected[row][1] or 0) if row in expected else -1
        for row in range(ROWS)
    ]
    assert [y[1] for y in result.y] == [7 if row in expected else 0 for row in range(ROWS)]
    if any(item % 3 == 0 for item in items):
        third = [item % 3 == 0 for item in items]
        assert list(result.extras) == ["third", "seed"]
        column = [[item] if t else None for item, t in zip(items, third, strict=True)]
        assert list(result.extras["third"]) == column
    else:
        assert result.extras is None


@all_kinds
async def test_a_vectorised_load_gets_runs_of_rows(kind: str) -> None:
    rows, items = [0, 1, 2, 5, 6], [10, 11, 12, 15, 16]
    async with bench(load_many, kind, vectorized=True) as b:
        result = await b.fill(items, rows=rows, seeds=[1, 2, 3, 4, None])
    assert result.x == [10001, 11002, 12003, -1, -1, 15004, 16000, -1]
    assert list(result.extras["double"]) == [20, 22, 24, 30, 32]


@all_kinds
async def test_items_and_seeds_may_be_any_sequence(kind: str) -> None:
    """Ranges, arrays, and seeds that are derived when they are asked for."""
    seeds = Seeds(key=5, start=3, length=8)
    expected = [n * 1000 + seed % 1000 for n, seed in enumerate(seeds)]
    async with bench(load, kind) as b:
        for items in (range(8), np.arange(8), tuple(range(8))):
            result = await b.fill(items, seeds=seeds)
            assert result.x == expected


@all_kinds
async def test_a_fill_of_no_rows_is_done_at_once(kind: str) -> None:
    async with bench(load, kind) as b:
        result = await b.fill([])
    assert (result.x, result.extras, result.retries) == ([-1] * ROWS, None, 0)


@all_kinds
async def test_many_fills_at_once_do_not_get_into_each_others_way(kind: str) -> None:
    async with bench(load, kind, depth=3) as b:
        results = await asyncio.gather(*(b.fill([n] * ROWS) for n in range(40)))
    for number, result in enumerate(results):
        assert result.x == [number * 1000] * ROWS


@all_kinds
async def test_values_come_back_as_they_were_returned(kind: str) -> None:
    """Text, arrays, nested things; large ones too."""

    def returns(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
        import numpy

        big = numpy.full(item * 30_000, item, "uint16")
        return {"text": "ä" * item, "array": big, "nested": {"a": [item, (None, big[:2])]}}

    async with bench(returns, kind) as b:
        result = await b.fill(range(4))
    assert result.extras["text"] == ["", "ä", "ää", "äää"]
    for number in range(4):
        array = result.extras["array"][number]
        assert array.dtype == "uint16"
        assert array.tolist() == [number] * (number * 30_000)
        assert result.extras["nested"][number]["a"][0] == number


# Errors -------------------------------------------------------------------------------------------


@all_kinds
async def test_the_lowest_failing_row_is_named(kind: str) -> None:
    """Whichever fails first; with what was raised, and where."""
    items = [0, 1, "two", 3, "four", 5, 6, "seven"]
    async with bench(fails_for_some, kind, num_workers=3) as b:
        with pytest.raises(ItemError, match="ValueError: cannot load two") as caught:
            await b.fill(items)
        error = caught.value
        assert (error.row, error.died) == (2, False)
        assert isinstance(error.__cause__, ValueError)
        assert "in fails_for_some" in error.remote_traceback
        with pytest.raises(ItemError, match="cannot load late") as caught:
            await b.fill([5, "late"], rows=[3, 6])
        assert caught.value.row == 6


@all_kinds
async def test_an_executor_goes_on_after_an_error(kind: str) -> None:
    async with bench(fails_for_some, kind, depth=2) as b:
        for number in range(6):
            with pytest.raises(ItemError):
                await b.fill([number, "bad"])
            assert (await b.fill([number] * ROWS)).x == [number] * ROWS


@all_kinds
async def test_an_error_is_the_business_of_its_own_fill(kind: str) -> None:
    async with bench(fails_for_some, kind) as b:
        fills = [b.fill([n, "bad"] if n % 2 else [n, n]) for n in range(8)]
        results = await asyncio.gather(*fills, return_exceptions=True)
    for number, result in enumerate(results):
        if number % 2:
            assert isinstance(result, ItemError)
        else:
            assert not isinstance(result, BaseException)
            assert result.x[:2] == [number] * 2


@all_kinds
async def test_exceptions_that_cannot_travel_are_told_in_words(kind: str) -> None:
    """One that fails where it is pickled, one where it is unpickled, one without a text."""

    class AtDump(Exception):
        def __reduce__(self) -> Any:
            raise RuntimeError("no")

    class AtLoad(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(one)

    class NoText(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    def raises(item: str, arrays: Any, seed: int | None) -> None:
        if item == "dump":
            raise AtDump("at dump")
        if item == "load":
            raise AtLoad(1, 2)
        if item == "text":
            raise NoText
        if item == "held":
            raise ValueError(lambda: None, (n for n in ()))

    async with bench(raises, kind) as b:
        for item, name in [
            ("dump", "AtDump"),
            ("load", "AtLoad"),
            ("text", "NoText"),
            ("held", "ValueError"),
        ]:
            with pytest.raises(ItemError, match=name) as caught:
                await b.fill(["good", item])
            assert caught.value.row == 1
            assert "in raises" in caught.value.remote_traceback or item == "text"


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (kind, error)
        for kind in KINDS
        for error in (KeyboardInterrupt, SystemExit, GeneratorExit)
        # On the event loop it ends the loop, as it does anywhere.
        if (kind, error) != ("coroutines", KeyboardInterrupt)
    ],
)
async def test_exceptions_that_end_programs_end_an_item(
    kind: str, error: type[BaseException]
) -> None:
    """Nobody pressed anything: the user's code raised it."""

    def raises(item: int, arrays: Any, seed: int | None) -> None:
        if item == 1:
            raise error("by hand")

    async with bench(raises, kind) as b:
        with pytest.raises(ItemError, match=error.__name__) as caught:
            await b.fill([0, 1])
        assert caught.value.row == 1
        await b.fill([0, 0])


@all_kinds
async def test_what_is_no_mapping_is_an_error(kind: str) -> None:
    async with bench(lambda item, *_: item, kind) as b:
        with pytest.raises(ItemError, match=r"must return a mapping .* it returned 5") as caught:
            await b.fill([None, 5])
        assert caught.value.row == 1


@all_kinds
async def test_a_vectorised_load_that_returns_too_little_is_an_error(kind: str) -> None:
    async with bench(lambda *_: {"k": [1]}, kind, vectorized=True, num_workers=1) as b:
        with pytest.raises(ItemError, match="1 values for key 'k'"):
            await b.fill(range(8))


# Retries ------------------------------------------------------------------------------------------


@all_kinds
async def test_failing_items_are_tried_again_and_that_is_counted(kind: str) -> None:
    """A row that has failed is begun anew; what it wrote before is still there."""

    def flaky(item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] += 1
        if arrays["x"] < item:
            raise ConnectionError("try again")

    async with bench(flaky, kind, retries=2) as b:
        result = await b.fill([1, 2, 3, 1], background=0)
        assert result.x[:4] == [1, 2, 3, 1]
        assert result.retries == 3
        with pytest.raises(ItemError, match="ConnectionError: try again") as caught:
            await b.fill([1, 4], background=0)
        assert caught.value.row == 1


# Startup ------------------------------------------------------------------------------------------


@all_kinds
async def test_startup_runs_once_where_load_runs(kind: str, tmp_path: Path) -> None:
    """In each worker, before its first item; what it sets up is there for every item."""
    folder = str(tmp_path)

    def startup() -> None:
        import builtins
        import os
        import uuid

        builtins.prepared_for_this_test = os.getpid()  # type: ignore[attr-defined]
        open(f"{folder}/{uuid.uuid4()}", "x").close()

    def uses_it(item: int, arrays: Any, seed: int | None) -> None:
        import builtins
        import os

        arrays["x"][...] = builtins.prepared_for_this_test == os.getpid()  # type: ignore[attr-defined]

    async with bench(uses_it, kind, startup=startup, num_workers=2) as b:
        for _ in range(5):
            assert (await b.fill(range(8))).x == [1] * 8
        places = 1 if kind == "coroutines" else 2
        await until(lambda: len(list(tmp_path.iterdir())) == places)
    assert len(list(tmp_path.iterdir())) == places


@pytest.mark.parametrize("kind", ["processes", "threads"])
async def test_a_failing_startup_is_reported_by_every_fill(kind: str) -> None:
    """By those that wait already, by those that come later, and leaving works as ever."""

    def startup() -> None:
        raise FileNotFoundError("no such model")

    async with bench(load, kind, startup=startup) as b:
        fills = [b.fill(range(8)), b.fill(range(3))]
        for result in await asyncio.gather(*fills, return_exceptions=True):
            assert isinstance(result, ItemError)
            assert "FileNotFoundError: no such model" in str(result)
            assert isinstance(result.__cause__, FileNotFoundError)
        for _ in range(3):
            await asyncio.sleep(0.01)
            with pytest.raises(ItemError, match="no such model"):
                await b.fill(range(8))


async def test_a_failing_startup_of_coroutines_is_raised_on_entering() -> None:
    def startup() -> None:
        raise FileNotFoundError("no such model")

    with pytest.raises(FileNotFoundError, match="no such model"):
        async with bench(load, "coroutines", startup=startup):
            pass


# Time limits --------------------------------------------------------------------------------------


class Hangs:
    """A load that does not return for some items, until the test is over."""

    def __init__(self, over: Path) -> None:
        self.over = str(over)

    def __call__(self, item: Any, arrays: Any, seed: int | None) -> None:
        while item == "hang" and not os.path.exists(self.over):
            time.sleep(0.005)
        arrays["x"][...] = 0 if item == "hang" else item


class HangsSoftly(Hangs):
    """The same, waiting for something that never comes."""

    async def __call__(self, item: Any, arrays: Any, seed: int | None) -> None:  # type: ignore[override]
        if item == "hang":
            await anyio.sleep_forever()
        arrays["x"][...] = item


@pytest.fixture
def hangs(kind: str, tmp_path: Path) -> Iterator[Hangs]:
    over = tmp_path / "over"
    yield HangsSoftly(over) if kind == "coroutines" else Hangs(over)
    over.touch()  # a thread cannot be ended from outside


@all_kinds
async def test_an_item_that_takes_too_long_is_an_error(kind: str, hangs: Hangs) -> None:
    """It names the limit and the row, its cause is a TimeoutError, and the executor goes on."""
    async with bench(hangs, kind, item_timeout=0.2) as b:
        await b.fill(range(8))
        started = time.monotonic()
        with pytest.raises(ItemError, match=r"item_timeout=0\.2 s") as caught:
            await b.fill([1, 2, "hang", 4])
        assert 0.15 < time.monotonic() - started < 5
        assert caught.value.row == 2
        assert isinstance(caught.value.__cause__, TimeoutError)
        assert (await b.fill(range(8))).x == list(range(8))


@all_kinds
async def test_fills_beside_a_hanging_item_are_filled(kind: str, hangs: Hangs) -> None:
    """Whether they came before it or after it."""
    async with bench(hangs, kind, item_timeout=0.2) as b:
        fills = [b.fill([n, "hang"] if n == 1 else [n, n]) for n in range(4)]
        with anyio.fail_after(5):
            results = await asyncio.gather(*fills, return_exceptions=True)
    assert isinstance(results[1], ItemError)
    for number in (0, 2, 3):
        result = results[number]
        assert not isinstance(result, BaseException)
        assert result.x[:2] == [number, number]


@all_kinds
async def test_the_limit_is_for_each_item_and_not_for_the_fill(kind: str) -> None:
    """Many items may take longer together."""

    def slow(item: int, arrays: Any, seed: int | None) -> None:
        time.sleep(0.05)
        arrays["x"][...] = item

    async with bench(slow, kind, item_timeout=0.25, num_workers=1, max_concurrency=1) as b:
        assert (await b.fill(range(8))).x == list(range(8))


@all_kinds
async def test_waiting_between_tries_is_not_taking_too_long(kind: str) -> None:
    """The limit is for each try: each of these fails at once, and the last does not fail."""

    def flaky(item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] += 1
        if arrays["x"] < item:
            raise ConnectionError("try again")

    async with bench(flaky, kind, item_timeout=0.2, retries=3) as b:
        result = await b.fill([1, 4], background=0)
    assert result.x[:2] == [1, 4]
    assert result.retries == 3


# Cancellation -------------------------------------------------------------------------------------


@all_kinds
async def test_a_cancelled_fill_keeps_its_slot_until_nobody_writes_to_it(
    kind: str, tmp_path: Path
) -> None:
    """The slot stays on loan while the item runs, then comes back by itself."""
    begun, go = str(tmp_path / "begun"), str(tmp_path / "go")

    def waits(item: int, arrays: Any, seed: int | None) -> None:
        open(begun, "w").close()
        while not os.path.exists(go):
            time.sleep(0.002)
        arrays["x"][...] = item

    async def waits_softly(item: int, arrays: Any, seed: int | None) -> None:
        open(begun, "w").close()
        while not os.path.exists(go):
            await asyncio.sleep(0.002)
        arrays["x"][...] = item

    function = waits_softly if kind == "coroutines" else waits
    async with bench(function, kind, depth=1, num_workers=1) as b:
        filling = asyncio.ensure_future(b.fill([5]))
        await until(lambda: os.path.exists(begun))
        filling.cancel()
        await asyncio.wait([filling])
        assert filling.cancelled()
        del filling
        gc.collect()
        await asyncio.sleep(0.02)
        assert b.arena.on_loan == 1
        Path(go).touch()
        await until(lambda: b.arena.on_loan == 0)
        assert (await b.fill([6])).x[0] == 6


@all_kinds
async def test_cancelled_fills_lose_no_slots_at_any_moment(kind: str) -> None:
    """However far they had come; and the next fill is right."""
    async with bench(load, kind, depth=2) as b:
        for turns in range(25):
            filling = asyncio.ensure_future(b.fill(range(8)))
            for _ in range(turns):
                await asyncio.sleep(0)
            filling.cancel()
            await asyncio.wait([filling])
            del filling
        with anyio.fail_after(20):
            results = await asyncio.gather(*(b.fill(range(8)) for _ in range(4)))
        assert [result.x for result in results] == [[n * 1000 for n in range(8)]] * 4
        await until(lambda: b.arena.on_loan == 0)


# Beginning and ending -----------------------------------------------------------------------------


@all_kinds
async def test_an_executor_may_be_left_without_having_done_anything(kind: str) -> None:
    async with bench(load, kind) as b:
        assert type(b.executor).__name__ in repr(b.executor)


@all_kinds
async def test_leaving_twice_is_harmless(kind: str) -> None:
    async with bench(load, kind) as b:
        await b.fill(range(8))
        await b.executor.__aexit__(None, None, None)


@all_kinds
async def test_the_bodys_own_exception_is_not_wrapped(kind: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with bench(load, kind):
            raise ZeroDivisionError


def test_the_kind_of_work_decides_who_does_it() -> None:
    async def coroutine(item: Any, arrays: Any, seed: Any) -> None: ...

    chosen = [
        (Work(coroutine, LAYOUTS, num_workers=4), CoroutineExecutor),
        (Work(load, LAYOUTS, num_workers=0), ThreadExecutor),
        (Work(load, LAYOUTS, num_workers=1), ProcessExecutor),
    ]
    assert set(KINDS.values()) == {kind for _, kind in chosen}
    for work, kind in chosen:
        assert type(choose_executor(work)) is kind
