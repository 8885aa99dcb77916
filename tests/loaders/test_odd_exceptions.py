"""Odd exceptions: those that end loops, tasks and programs are a batch's error like any other."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import Any

import jax
import pytest
from support import run_on

from aioloader import DataGroup, Loader, LoadError

ARRAYS = {"x": ((), "int32", "int32")}
ODD: dict[str, type[BaseException]] = {
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "GeneratorExit": GeneratorExit,
    "asyncio.CancelledError": asyncio.CancelledError,
    "concurrent.futures.CancelledError": concurrent.futures.CancelledError,
    "TimeoutError": TimeoutError,
    "SystemExit": SystemExit,
    "BaseException": BaseException,
}
STAGES = ["data", "load in a worker", "load in a thread", "load on the loop", "fetch", "place"]


def _stage(name: str, kind: type[BaseException]) -> dict[str, Any]:
    """Return a loader's arguments with which the item 4 fails in one stage."""

    def fail(item: object) -> None:
        if item == 4:
            raise kind("an odd one")

    class Data:
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> int:
            fail(index)
            return index

    def load(item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = item

    def failing(item: int, arrays: Any, seed: int | None) -> None:
        fail(item)
        load(item, arrays, seed)

    async def failing_async(item: int, arrays: Any, seed: int | None) -> None:
        failing(item, arrays, seed)

    async def fetch(item: int) -> int:
        fail(item)
        return item

    def place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
        fail(int(arrays["x"][0]))
        return jax.device_put(dict(arrays))

    changes: dict[str, dict[str, Any]] = {
        "data": {"data": Data()},
        "load in a worker": {"load": failing, "num_workers": 1},
        "load in a thread": {"load": failing},
        "load on the loop": {"load": failing_async},
        "fetch": {"fetch": fetch},
        "place": {"place": place},
    }
    return {"load": load, "data": range(12), "num_workers": 0, **changes[name]}


@pytest.mark.parametrize("kind", list(ODD))
@pytest.mark.parametrize("stage", STAGES)
def test_an_odd_exception_is_the_batchs_error_in_its_turn(stage: str, kind: str) -> None:
    """Neither the end of the data, nor that of the program, nor a wait without end."""

    async def main() -> tuple[list[int], LoadError]:
        options = _stage(stage, ODD[kind])
        load, data = options.pop("load"), options.pop("data")
        group = DataGroup(4, data, loader_arrays=ARRAYS)
        seen: list[int] = []
        async with Loader(load, group, timeout=0.5, end_at=("epoch", 1), **options) as loader:
            seen.append((await anext(loader)).group_index)
            with pytest.raises(LoadError) as caught:
                await anext(loader)
            seen += [batch.group_index async for batch in loader]
        return seen, caught.value

    seen, error = run_on("asyncio", main())
    assert seen == [0, 2]
    assert (error.group, error.batch) == ("training group 0", 1)
    if kind == "StopIteration" and stage in ("load on the loop", "fetch"):
        assert "coroutine raised StopIteration" in str(error)  # as Python itself has it
    else:
        assert "an odd one" in str(error)
        assert type(error.__cause__) is ODD[kind]
