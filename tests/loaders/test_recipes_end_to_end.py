"""Recipes: every kind of function, and of item, that a program may hand to a loader."""

from __future__ import annotations

import asyncio
import functools
import json
import operator
import os
import threading
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from loading import additional, each, host
from support import script, until

from aioloader import DataGroup, Loader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

ARRAYS = {"x": ((2,), "int32", "int32")}


def _plain(item: int, arrays: Any, seed: int | None) -> None:
    arrays["x"][...] = item * 3


def _scaled(scale: int, item: int, arrays: Any, seed: int | None, *, shift: int = 0) -> None:
    arrays["x"][...] = item * scale + shift


def _recursive(item: int, arrays: Any, seed: int | None) -> None:
    def triple(k: int) -> int:
        return 0 if k == 0 else 3 + triple(k - 1)

    arrays["x"][...] = triple(item)


def _decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


class _Scaler:
    scale = 1

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def __call__(self, item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = item * self.scale

    def method(self, item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = item * self.scale

    @classmethod
    def of_class(cls, item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = item * cls.scale * 3

    @staticmethod
    def of_nobody(item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = item * 3


class _AsyncScaler(_Scaler):
    async def __call__(self, item: int, arrays: Any, seed: int | None) -> None:
        await asyncio.sleep(0)
        arrays["x"][...] = item * self.scale

    async def later(self, item: int, arrays: Any, seed: int | None) -> None:
        await asyncio.sleep(0)
        arrays["x"][...] = item * self.scale


async def _later(scale: int, item: int, arrays: Any, seed: int | None) -> None:
    await asyncio.sleep(0)
    arrays["x"][...] = item * scale


def _closure() -> Callable[..., Any]:
    scale, table = 3, {k: 3 * k for k in range(8)}

    def load(item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][0] = item * scale
        arrays["x"][1] = table[item]

    return load


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "a function": _plain,
    "a lambda": lambda item, arrays, seed: operator.setitem(arrays["x"], ..., item * 3),
    "a closure": _closure(),
    "a partial": functools.partial(_scaled, 3, shift=0),
    "a partial of a partial": functools.partial(functools.partial(_scaled, 3), shift=0),
    "a partial of a method": functools.partial(_Scaler(3).method),
    "a recursive function": _recursive,
    "a decorated function": _decorated(_plain),
    "a bound method": _Scaler(3).method,
    "a class method": _Scaler.of_class,
    "a static method": _Scaler.of_nobody,
    "a callable object": _Scaler(3),
}
COROUTINES: dict[str, Callable[..., Any]] = {
    "a coroutine function": functools.partial(_later, 3),
    "a callable object": _AsyncScaler(3),
    "a bound method": _AsyncScaler(3).later,
    "a partial of a method": functools.partial(_AsyncScaler(3).later),
}


def _loader(load: Any, **options: Any) -> Loader[Any]:
    group = DataGroup(4, options.pop("data", range(8)), loader_arrays=ARRAYS)
    return Loader(load, group, **{"end_at": ("epoch", 1), **options})


def _triples(batches: Sequence[dict[str, np.ndarray]]) -> bool:
    rows = np.concatenate([batch["x"] for batch in batches])
    return bool((rows == 3 * np.arange(8)[:, None]).all())


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("kind", list(FUNCTIONS))
async def test_any_function_loads(kind: str, num_workers: int) -> None:
    """In workers and in a thread."""
    assert _triples(await each(_loader(FUNCTIONS[kind], num_workers=num_workers), host))


@pytest.mark.parametrize("kind", list(COROUTINES))
async def test_any_coroutine_function_loads_on_the_loop(kind: str) -> None:
    """It is told from a plain one, however it is wrapped; no worker is started for it."""
    loader = _loader(COROUTINES[kind], num_workers=2)
    assert _triples(await each(loader, host))
    assert not hasattr(loader._executor, "worker_pids")


async def test_a_function_may_carry_what_is_large() -> None:
    """A table of megabytes travels with it, once for each worker."""
    table = np.arange(1_000_000)

    def load(item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = table[item] * 3

    assert _triples(await each(_loader(load, num_workers=2), host))


async def test_a_function_may_refer_to_its_group() -> None:
    """A group is a value, and travels to workers like any."""
    group = DataGroup(4, [f"item {k}" for k in range(8)], loader_arrays=ARRAYS)

    def load(item: str, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = 3 * group.index(item) + len(group) - 8

    assert _triples(await each(Loader(load, group, end_at=("epoch", 1)), host))


def _unpicklable_load() -> Callable[..., Any]:
    lock = threading.Lock()

    def load(item: int, arrays: Any, seed: int | None) -> None:
        with lock:
            arrays["x"][...] = item * 3

    return load


async def test_what_cannot_travel_is_named_before_anything_starts() -> None:
    """`load` or `startup`, and why; in a thread of this process it works."""
    with pytest.raises(TypeError, match=r"load=.*lock.*startup"):
        await _loader(_unpicklable_load()).__aenter__()
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"startup=.*lock"):
        await _loader(_plain, startup=lambda: lock).__aenter__()
    assert _triples(await each(_loader(_unpicklable_load(), num_workers=0), host))


async def test_seeds_make_augmentations_that_can_be_repeated() -> None:
    """The seed that `load` gets is a plain number that numpy takes."""

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
        arrays["x"][...] = np.random.default_rng(seed).integers(0, 1 << 30, 2)
        return {"kind": type(seed).__name__, "seed": seed}

    first = await each(_loader(load, num_workers=1), lambda b: (host(b)["x"], additional(b)))
    second = await each(_loader(load, num_workers=2), lambda b: (host(b)["x"], additional(b)))
    for (x, extras), (again, same) in zip(first, second, strict=True):
        assert (x == again).all()
        assert extras == same
        assert extras["kind"] == ["int"] * 4
        for row, seed in enumerate(extras["seed"]):
            assert x[row].tolist() == np.random.default_rng(seed).integers(0, 1 << 30, 2).tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
async def test_startup_runs_once_in_each_worker_before_anything_else(
    tmp_path: Path, num_workers: int
) -> None:
    """What it sets up, `load` finds; it runs where `load` runs."""

    def startup() -> None:
        name = f"{os.getpid()}-{threading.get_ident()}"
        (tmp_path / name).touch(exist_ok=False)  # a second time would raise

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
        name = f"{os.getpid()}-{threading.get_ident()}"
        return {"ready": (tmp_path / name).exists(), "here": os.getpid()}

    loader = _loader(load, startup=startup, num_workers=num_workers, end_at=("epoch", 5))
    places: set[int] = set()
    async with loader:
        async for batch in loader:
            assert list(batch.additional["ready"]) == [True] * 4
            places |= set(batch.additional["here"])
        await until(lambda: len(list(tmp_path.iterdir())) == max(num_workers, 1))
    started = {int(path.name.split("-")[0]) for path in tmp_path.iterdir()}
    assert places <= started
    assert (os.getpid() in started) is (num_workers == 0)


async def test_startup_of_a_coroutine_load_may_be_a_coroutine() -> None:
    """It runs on the loop, before the first item, once each time the loader is entered."""
    calls: list[str] = []

    async def startup() -> None:
        await asyncio.sleep(0)
        calls.append("startup")

    async def load(item: int, arrays: Any, seed: int | None) -> None:
        calls.append("load")

    loader = _loader(load, startup=startup, depth=1)
    for entered in (1, 2):
        await each(loader, lambda batch: None)
        assert calls == (["startup"] + ["load"] * 8) * entered


def test_a_coroutine_startup_is_refused_where_nothing_would_await_it() -> None:
    """A plain `load` runs where there is no event loop."""

    async def startup() -> None: ...

    with pytest.raises(TypeError, match="startup"):
        _loader(_plain, startup=startup)


@pytest.mark.parametrize("worker_nice", [0, 7, None])
async def test_workers_are_as_nice_as_they_are_told(worker_nice: int | None) -> None:
    """Ten by default, on top of the program's own; the program's stays as it is."""

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
        return {"nice": os.nice(0)}

    own = os.nice(0)
    options = {} if worker_nice is None else {"worker_nice": worker_nice}
    (first, second) = await each(_loader(load, **options), additional)
    expected = min(own + (10 if worker_nice is None else worker_nice), 19)
    assert first["nice"] + second["nice"] == [expected] * 8
    assert os.nice(0) == own


@pytest.mark.parametrize("kind", ["bytes", "array", "in a tuple"])
@pytest.mark.parametrize("size", [0, 32 * 1024, 1 << 20, 32 << 20])
async def test_fetched_payloads_reach_workers_whole(size: int, kind: str) -> None:
    """Of every size, in order of rows, whatever order they came in."""
    arrived: list[int] = []

    def payload(item: int) -> Any:
        block = np.full(size, item + 1, np.uint8)
        block[: size // 2 : 4096] = 99
        content: Any = block if kind == "array" else block.tobytes()
        return (item, {"content": content}) if kind == "in a tuple" else content

    async def fetch(item: int) -> Any:
        for _ in range(5 - item % 4):  # later rows arrive earlier
            await asyncio.sleep(0)
        arrived.append(item)
        return payload(item)

    def load(received: Any, arrays: Any, seed: int | None) -> dict[str, object]:
        content = received[1]["content"] if isinstance(received, tuple) else received
        arrays["x"][...] = len(content)
        return {"checksum": zlib.crc32(content), "kind": type(content).__name__, "pid": os.getpid()}

    loader = _loader(load, fetch=fetch, data=range(4), depth=1)
    ((x, extras),) = await each(loader, lambda b: (host(b)["x"], additional(b)))
    assert sorted(arrived) == [0, 1, 2, 3] != arrived
    assert x.tolist() == [[size, size]] * 4
    contents = [payload(k)[1]["content"] if kind == "in a tuple" else payload(k) for k in range(4)]
    assert extras["checksum"] == [zlib.crc32(content) for content in contents]
    assert set(extras["kind"]) == {"ndarray" if kind == "array" else "bytes"}
    assert os.getpid() not in extras["pid"]


class _Client:
    def __init__(self) -> None:
        self.open = 0

    async def get(self, item: int, scale: int = 1) -> int:
        self.open += 1
        await asyncio.sleep(0)
        self.open -= 1
        return item * scale


async def test_fetch_may_be_any_coroutine_function_and_feeds_any_load() -> None:
    """A bound method of a client that cannot travel, a partial; a plain load, a coroutine."""
    client = _Client()
    for fetch, load in (
        (client.get, _plain),
        (functools.partial(client.get, scale=3), functools.partial(_scaled, 1)),
        (client.get, functools.partial(_later, 3)),
    ):
        for num_workers in (0, 1):
            loader = _loader(load, fetch=fetch, num_workers=num_workers)
            assert _triples(await each(loader, host))
    assert client.open == 0


PROGRAM = """
import dataclasses, functools, json
from aioloader import DataGroup, Loader, run

FACTOR = 3

@dataclasses.dataclass
class Item:
    value: int

class Reader:
    def __init__(self, factor):
        self.factor = factor
    def read(self, item, arrays, seed):
        return helper(item, arrays, self.factor)
    def __call__(self, item, arrays, seed):
        return helper(item, arrays, self.factor)

def helper(item, arrays, factor):
    arrays["x"][...] = item.value * factor
    return {"name": __name__, "kind": type(item).__name__}

def load(item, arrays, seed):
    return helper(item, arrays, FACTOR)

def load_many(items, arrays, seeds):
    arrays["x"][...] = [[item.value * FACTOR] * 2 for item in items]

async def fetch(item):
    return Item(item.value)

def closure(factor):
    return lambda item, arrays, seed: helper(item, arrays, factor)

def startup():
    global FACTOR
    FACTOR = 3

WAYS = {"function": {"load": load}, "method": {"load": Reader(3).read},
        "object": {"load": Reader(3)}, "closure": {"load": closure(3)},
        "partial": {"load": functools.partial(load)},
        "fetch": {"load": load, "fetch": fetch}, "startup": {"load": load, "startup": startup},
        "vectorized": {"load": load_many, "vectorized": True}}

async def main(load, **options):
    group = DataGroup(4, [Item(k) for k in range(8)], loader_arrays={"x": ((2,), "int32", "int32")})
    seen = []
    async with Loader(load, group, end_at=("epoch", 1), num_workers=2, **options) as loader:
        async for batch in loader:
            seen += batch.arrays["x"][:, 1].tolist()
            assert all(item.value == i for item, i in zip(batch.data, batch.indices))
    return seen

if __name__ == "__main__":
    print(json.dumps({way: run(main(**options)) for way, options in WAYS.items()}))
"""


def test_functions_and_items_of_a_script_need_no_module(tmp_path: Path) -> None:
    """With their globals, helpers and classes, though workers have another `__main__`."""
    output, errors = script(tmp_path, PROGRAM).communicate(timeout=60)
    assert errors == ""
    report = json.loads(output)
    assert len(report) == 8
    for way, seen in report.items():
        assert seen == [3 * k for k in range(8)], way
