"""Promise 1: every planned row is delivered once, or an error says which was not and why."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import TYPE_CHECKING, Any

import jax
import pytest
from support import ARRAYS, both_loops, digests, run_on, simple_group, simple_load

from aioloader import DataGroup, Loader, LoadError, WorkerDied

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _once(marker: Path, action: Callable[[], object]) -> None:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    action()


FATES: dict[str, Callable[[], object]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": lambda: ctypes.string_at(0),
    "os._exit": lambda: os._exit(3),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
}


@pytest.mark.parametrize("fate", list(FATES))
@pytest.mark.parametrize("point", ["before", "after"])
@both_loops
def test_a_worker_that_dies_costs_a_second_run_of_its_rows(
    tmp_path: Path, fate: str, point: str, loop: str
) -> None:
    """Before it writes a row or after, in the middle of an epoch: the bytes are a clean run's."""
    end = FATES[fate]

    def load(item: int, arrays: Any, seed: int | None) -> Any:
        if item in (21, 22) and point == "before":
            _once(tmp_path / str(item), end)
        extras = simple_load(item, arrays, seed)
        if item in (21, 22) and point == "after":
            _once(tmp_path / str(item), end)
        return extras

    group = simple_group()
    clean = run_on(loop, digests(Loader(simple_load, group, end_at=("epoch", 1), num_workers=0)))
    loader = Loader(load, group, end_at=("epoch", 1), num_workers=2)
    assert run_on(loop, digests(loader)) == clean
    assert loader.statistics().worker_deaths >= 1


@both_loops
def test_workers_killed_again_and_again_lose_nothing(tmp_path: Path, loop: str) -> None:
    """A death at every fiftieth item."""

    def load(item: int, arrays: Any, seed: int | None) -> Any:
        if item % 50 == 7:
            _once(tmp_path / str(item), FATES["SIGKILL"])
        return simple_load(item, arrays, seed)

    group = simple_group(400)
    clean = run_on(loop, digests(Loader(simple_load, group, end_at=("epoch", 1), num_workers=0)))
    loader = Loader(load, group, end_at=("epoch", 1), num_workers=2)
    assert run_on(loop, digests(loader)) == clean
    assert loader.statistics().worker_deaths >= 4


@pytest.mark.parametrize("vectorized", [False, True])
def test_an_item_that_always_kills_is_named_and_the_rest_arrives(vectorized: bool) -> None:
    """It is `WorkerDied` in its batch's turn; the batches around it are whole."""

    def load(item: Any, arrays: Any, seed: Any) -> None:
        if 13 in (item if vectorized else [item]):
            os._exit(9)
        arrays["y"][...] = item

    async def main() -> tuple[list[int], WorkerDied]:
        group = simple_group(32)
        seen: list[int] = []
        async with Loader(
            load, group, end_at=("epoch", 1), num_workers=2, vectorized=vectorized
        ) as loader:
            async for batch in loader:
                seen += batch.indices
                if len(seen) == 8:
                    with pytest.raises(WorkerDied) as caught:
                        await anext(loader)
        return seen, caught.value

    seen, error = run_on("asyncio", main())
    assert seen == [*range(8), *range(16, 32)]
    assert (error.group, error.batch, error.row, error.item) == ("training group 0", 1, 5, 13)
    assert "exited with code 9" in str(error)


class _NotPicklable(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = lambda: None


class _NotUnpicklable(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def _raise(error: BaseException) -> Any:
    raise error


BAD = {
    "ValueError": (lambda: _raise(ValueError("bad item")), "bad item"),
    "an exception that does not pickle": (lambda: _raise(_NotPicklable("cannot go")), "cannot go"),
    "an exception that does not unpickle": (lambda: _raise(_NotUnpicklable("a", "b")), "a b"),
    "SystemExit": (lambda: _raise(SystemExit("out")), "SystemExit"),
    "a result that does not pickle": (lambda: {"x": (i for i in ())}, "generator"),
    "a result that is no mapping": (lambda: [1, 2], "must return a mapping"),
    "a generator function": (lambda: (yield), "must return a mapping"),
}


@pytest.mark.parametrize("kind", list(BAD))
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_arrives_in_its_turn_with_everything_known(kind: str, num_workers: int) -> None:
    """Whatever `load` raises or returns, and whether or not it can be pickled."""
    if num_workers == 0 and kind == "a result that does not pickle":
        return  # in this process it arrives unharmed
    misbehave, text = BAD[kind]

    def load(item: int, arrays: Any, seed: int | None) -> Any:
        return misbehave() if item == 20 else simple_load(item, arrays, seed)

    async def main() -> tuple[list[int], LoadError]:
        seen: list[int] = []
        async with Loader(
            load, simple_group(32), end_at=("epoch", 1), num_workers=num_workers
        ) as loader:
            with pytest.raises(LoadError) as caught:
                async for batch in loader:
                    seen += batch.indices
            async for batch in loader:
                seen += batch.indices
        return seen, caught.value

    seen, error = run_on("asyncio", main())
    assert seen == [*range(16), *range(24, 32)]
    assert (error.group, error.batch) == ("training group 0", 2)
    assert text in str(error)
    if kind != "a result that does not pickle":
        assert (error.row, error.item) == (4, 20)
        assert any("Traceback" in note for note in error.__notes__)
    if kind == "ValueError":
        assert isinstance(error.__cause__, ValueError)


async def _async_fail(item: int, *_: Any) -> Any:
    if item == 20:
        raise ConnectionError("no route")
    return item


async def _async_load(item: int, *_: Any) -> None:
    await _async_fail(item)


@pytest.mark.parametrize("stage", ["load", "fetch", "place", "data"])
def test_every_stage_reports_in_turn(stage: str) -> None:
    """A coroutine `load`, a `fetch`, a `place` and the data themselves."""

    class Data:
        def __len__(self) -> int:
            return 32

        def __getitem__(self, index: int) -> int:
            if index == 20 and stage == "data":
                raise OSError("disk gone")
            return index

    def place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
        if 20 in arrays["x"][:, 0]:
            raise RuntimeError("no device")
        return {name: jax.device_put(a) for name, a in arrays.items()}

    options: dict[str, Any] = {"load": simple_load, "num_workers": 0}
    if stage == "load":
        options["load"] = _async_load
    elif stage == "fetch":
        options["fetch"] = _async_fail
    elif stage == "place":
        options["place"] = place
    arrays = {"x": ((4,), "int32", "int32"), "y": ((), "float32", "float32")}
    group = DataGroup(8, Data(), loader_arrays=arrays)

    async def main() -> list[int]:
        seen: list[int] = []
        load = options.pop("load")
        async with Loader(load, group, end_at=("epoch", 1), **options) as loader:
            with pytest.raises(LoadError, match="batch 2 of training group 0, epoch 0"):
                async for batch in loader:
                    seen += batch.indices
            async for batch in loader:
                seen += batch.indices
        return seen

    assert run_on("asyncio", main()) == [*range(16), *range(24, 32)]


def test_dropped_batches_are_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """`on_error="drop"` leaves out exactly the batches that failed."""

    def load(item: int, arrays: Any, seed: int | None) -> Any:
        if item in (3, 30):
            raise ValueError("unreadable")
        return simple_load(item, arrays, seed)

    async def main() -> tuple[list[int], int]:
        seen: list[int] = []
        async with Loader(
            load, simple_group(32), end_at=("epoch", 1), num_workers=1, on_error="drop"
        ) as loader:
            async for batch in loader:
                seen += batch.indices
            return seen, loader.statistics().dropped

    assert run_on("asyncio", main()) == ([*range(8, 24)], 2)
    assert sum("unreadable" in record.message for record in caplog.records) == 2


@pytest.mark.parametrize("end", [("epoch", 1), ("batch", 3)])
def test_an_epoch_of_which_everything_was_dropped_raises(end: Any) -> None:
    """Errors never turn into a normal end of the data."""

    def load(item: int, arrays: Any, seed: int | None) -> None:
        raise ValueError("nothing can be read")

    async def main() -> None:
        async with Loader(
            load, simple_group(32), end_at=end, num_workers=0, on_error="drop"
        ) as loader:
            async for _ in loader:
                raise AssertionError("there is nothing to deliver")

    with pytest.raises(LoadError, match=r"every batch of epoch 0 was dropped.*nothing can be read"):
        run_on("asyncio", main())


def test_retries_are_made_and_counted(tmp_path: Path) -> None:
    """An item whose error passes is delivered."""

    def load(item: int, arrays: Any, seed: int | None) -> Any:
        if item % 10 == 4:
            _once(tmp_path / str(item), lambda: _raise(OSError("try again")))
        return simple_load(item, arrays, seed)

    loader = Loader(load, simple_group(32), end_at=("epoch", 1), num_workers=1, retries=1)
    assert len(run_on("asyncio", digests(loader))) == 4
    assert loader.statistics().retries == 3


def test_arrays_are_what_the_group_declares() -> None:
    """The layouts of a batch are the group's."""

    async def main() -> None:
        async with Loader(simple_load, simple_group(), end_at=("batch", 1)) as loader:
            async for batch in loader:
                assert set(batch.arrays) == set(ARRAYS)
                assert batch.arrays["x"].shape == (8, 4)

    run_on("asyncio", main())
