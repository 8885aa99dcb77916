"""Additional data: whatever `load` returns beside the arrays arrives unharmed."""

from __future__ import annotations

import datetime
import decimal
import fractions
import json
import pathlib
import uuid
from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from loading import additional, each, loop_steps
from support import script

from aioloader import DataGroup, Loader

if TYPE_CHECKING:
    from collections.abc import Callable

ARRAYS = {"x": ((), "int32", "int32")}
ROWS, ITEMS = 4, 8


KINDS: dict[str, Callable[[int], Any]] = {
    "strings": lambda k: "αβγ \U0001f40d\0" * k,
    "bytes": lambda k: bytes(range(256)) * k,
    "numbers": lambda k: [k, -(10**40) * k, k / 3, complex(k, -k), True],
    "not a number": lambda k: [float("inf"), -0.0, 5e-324],
    "ragged arrays": lambda k: np.arange(k * k, dtype="float32").reshape(k, k),
    "arrays of Fortran's order": lambda k: np.asfortranarray(np.arange(12).reshape(3, 4) + k),
    "arrays of other dtypes": lambda k: [
        np.array(["a", "bb" * k]),
        np.array(["2024-01-01"], "datetime64[D]") + k,
        np.array([(k, 2.0)], [("a", "i4"), ("b", "f8")]),
        np.array([k, None, "x"], dtype=object),
        np.array([k], ">u4"),
        np.array([1, 2], ml_dtypes.bfloat16),
        np.array(k),
        np.zeros((0, k)),
    ],
    "numpy scalars": lambda k: [np.float32(k) / 3, np.int64(-k), np.bool_(k % 2), np.str_("s")],
    "nested dicts": lambda k: {"a": {"b": [{"c": (k, {k})}] * k}, 3: {None: frozenset({k})}},
    "ordered and default dicts": lambda k: [OrderedDict(b=k, a=1), defaultdict(list, k=[k])],
    "standard values": lambda k: [
        datetime.datetime(2024, 1, 1 + k, tzinfo=datetime.UTC),
        decimal.Decimal(k) / 7,
        fractions.Fraction(k, 7),
        uuid.UUID(int=k),
        pathlib.PurePosixPath(f"/a/{k}"),
        slice(k),
        range(k),
        ...,
    ],
    "functions": lambda k: [len, np.sum, lambda x: x + k],
    "classes": lambda k: [int, np.float32, pathlib.PurePath],
}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        same_kind = (one.dtype, one.shape) == (other.dtype, other.shape)
        return type(other) is type(one) and same_kind and one.tolist() == other.tolist()
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if callable(one) and getattr(one, "__name__", "") == "<lambda>":
        return bool(one(5) == other(5))
    if isinstance(one, type):
        return one is other
    if type(one).__name__ != type(other).__name__:
        return False
    return repr(one) == repr(other) or bool(one == other)


def _loader(load: Any, **options: Any) -> Loader[int]:
    group = DataGroup(ROWS, range(ITEMS), loader_arrays=ARRAYS)
    return Loader(load, group, end_at=("epoch", 1), **options)


WAYS = ["processes", "thread", "coroutines", "vectorized"]


@pytest.mark.parametrize("way", WAYS)
async def test_values_arrive_as_they_were_returned(way: str) -> None:
    """Of the same type and equal, each in its row and under its key."""

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
        return {kind: make(item) for kind, make in KINDS.items()}

    async def load_async(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
        return load(item, arrays, seed)

    def load_many(items: Any, arrays: Any, seeds: Any) -> dict[str, object]:
        return {kind: [make(item) for item in items] for kind, make in KINDS.items()}

    loader = {
        "processes": lambda: _loader(load, num_workers=1),
        "thread": lambda: _loader(load, num_workers=0),
        "coroutines": lambda: _loader(load_async),
        "vectorized": lambda: _loader(load_many, num_workers=1, vectorized=True),
    }[way]()
    for first, columns in zip((0, ROWS), await each(loader, additional), strict=True):
        assert set(columns) == set(KINDS)
        for kind, make in KINDS.items():
            for item, value in enumerate(columns[kind], first):
                assert _same(make(item), value), (kind, item, value)


@pytest.mark.parametrize("way", WAYS)
async def test_a_value_that_no_row_returned_is_none(way: str) -> None:
    """Each key has its own rows; rows that return nothing at all count like the others."""

    def row(item: int) -> dict[str, object] | None:
        return [None, {}, {"a": 1}, {"b": 2, "a": None}][item % 4]

    def load(item: int, arrays: Any, seed: int | None) -> Any:
        return row(item)

    async def load_async(item: int, arrays: Any, seed: int | None) -> Any:
        return row(item)

    def load_many(items: Any, arrays: Any, seeds: Any) -> Any:
        rows = [row(item) or {} for item in items]
        keys = {key for r in rows for key in r}
        return {key: [r.get(key) for r in rows] for key in keys}

    options: dict[str, Any] = {
        "processes": {"load": load, "num_workers": 1},
        "thread": {"load": load, "num_workers": 0},
        "coroutines": {"load": load_async},
        "vectorized": {"load": load_many, "num_workers": 1, "vectorized": True},
    }[way]
    for columns in await each(_loader(options.pop("load"), **options), additional):
        assert columns == {"a": [None, None, 1, None], "b": [None, None, None, 2]}


@pytest.mark.parametrize("num_workers", [0, 1])
async def test_large_values_arrive(num_workers: int) -> None:
    """Megabytes of bytes and of arrays, deep inside other values, beside small ones."""

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
        rng = np.random.default_rng(item)
        return {
            "blob": rng.bytes(1 << 20),
            "deep": {"a": [rng.integers(0, 99, (300, 1000)), rng.bytes(40_000)], "k": item},
            "text": str(item) * 100_000,
            "small": item,
        }

    for first, columns in enumerate(await each(_loader(load, num_workers=num_workers), additional)):
        for row in range(ROWS):
            item = first * ROWS + row
            rng = np.random.default_rng(item)
            assert columns["blob"][row] == rng.bytes(1 << 20)
            assert (columns["deep"][row]["a"][0] == rng.integers(0, 99, (300, 1000))).all()
            assert columns["deep"][row]["a"][1] == rng.bytes(40_000)
            assert columns["text"][row] == str(item) * 100_000
            assert (columns["deep"][row]["k"], columns["small"][row]) == (item, item)
        columns["deep"][0]["a"][0][...] = 0  # the program's own, to be written to


@pytest.mark.parametrize("kind", ["bytes", "numbers"])
async def test_large_values_do_not_block_the_loop(kind: str) -> None:
    """Taking them out of a worker's answer is no work for the event loop."""

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
        return {"value": bytes(4 << 20) if kind == "bytes" else list(range(50_000))}

    group = DataGroup(8, range(48), loader_arrays=ARRAYS)
    kept = []  # freeing them takes its time too, and is the program's own doing
    with loop_steps() as steps:
        async with Loader(load, group, depth=2, end_at=("epoch", 1)) as loader:
            async for batch in loader:
                kept.append(batch.additional)
                del batch
    assert len(kept) == 6
    assert sum(step > 3e-3 for step in steps) <= 2  # a garbage collection may be among them


PROGRAM = """
import dataclasses, enum, json, sys, typing
import numpy as np
from aioloader import DataGroup, Loader, run

@dataclasses.dataclass(frozen=True)
class Box:
    left: int
    name: str = ""
    array: object = None

class Colour(enum.Enum):
    RED = 1
    BLUE = "b"

class Pair(typing.NamedTuple):
    one: int
    two: object

class Node:
    def __init__(self, item):
        self.item = item
        self.me = self
    def __reduce__(self):
        return Node, (self.item,)

class Special(Exception):
    pass

def load(item, arrays, seed):
    k = item.left
    arrays["x"][...] = k
    assert isinstance(item, Box) and type(item) is Box
    return {"box": Box(k, item.name * 2, np.arange(k)), "colour": list(Colour)[k % 2],
            "pair": Pair(k, Box(-k)), "node": Node(k), "error": Special(k), "same": item,
            "large": [Box(i, "x" * 1000) for i in range(100)]}

async def aload(item, arrays, seed):
    return load(item, arrays, seed)

async def main(load, **options):
    items = [Box(k, f"box {k}") for k in range(8)]
    group = DataGroup(4, items, loader_arrays={"x": ((), "int32", "int32")})
    good = []
    async with Loader(load, group, end_at=("epoch", 1), **options) as loader:
        async for batch in loader:
            assert [item is items[i] for item, i in zip(batch.data, batch.indices)] == [True] * 4
            for row, k in enumerate(batch.indices):
                value = {key: column[row] for key, column in batch.additional.items()}
                box = value["box"]
                good.append([
                    type(box) is Box and (box.left, box.name) == (k, f"box {k}" * 2),
                    box.array.tolist() == list(range(k)),
                    value["colour"] is list(Colour)[k % 2],
                    type(value["pair"]) is Pair and value["pair"] == (k, Box(-k)),
                    type(value["node"]) is Node and value["node"].me.item == k,
                    type(value["error"]) is Special and value["error"].args == (k,),
                    value["same"] == items[k],
                    value["large"] == [Box(i, "x" * 1000) for i in range(100)],
                ])
    return good

ways = [main(load, num_workers=1), main(load, num_workers=0), main(aload)]
print(json.dumps([run(way) for way in ways]))
"""


def test_values_of_classes_of_the_program_itself_arrive(tmp_path: pathlib.Path) -> None:
    """Dataclasses, enums, tuples with names and errors of `__main__`: items and results."""
    output, errors = script(tmp_path, PROGRAM).communicate(timeout=60)
    assert errors == ""
    reports = json.loads(output)
    assert [len(report) for report in reports] == [8, 8, 8]
    for report in reports:
        for row in report:
            assert row == [True] * 8
