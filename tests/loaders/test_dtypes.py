"""Dtypes: every bit of every dtype that JAX has arrives, through processes, threads and tasks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from loading import each, host
from support import script

from aioloader import DataGroup, LayoutError, Loader

if TYPE_CHECKING:
    from pathlib import Path

SAME = [
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32"),
    *("float16", "float32", "complex64", "bfloat16"),
    *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("int4", "uint4", "int2", "uint2", "float4_e2m1fn"),
]
SHAPES: list[tuple[int, ...]] = [(), (3,), (0,), (2, 0, 3), (2, 5)]
ROWS = 7

_FEW_BITS = {"int4": (-8, 8), "uint4": (0, 16), "int2": (-2, 2), "uint2": (0, 4)}


def values(dtype: str, shape: tuple[int, ...], item: int) -> np.ndarray:
    """Return an array of all kinds of bits: infinities, NaNs and the ends of the range."""
    rng = np.random.default_rng([item, len(shape), len(dtype), *dtype.encode()])
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype in _FEW_BITS:
        return rng.integers(*_FEW_BITS[dtype], shape).astype(np.dtype(dtype))
    if dtype == "float4_e2m1fn":
        return rng.choice([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -6], shape).astype(np.dtype(dtype))
    width = np.dtype(dtype).itemsize
    raw = rng.integers(0, 256, (*shape, width), dtype=np.uint8)
    return np.ascontiguousarray(raw).reshape(-1).view(dtype).reshape(shape)


def _load(item: int, arrays: Any, seed: int | None) -> None:
    for name, array in arrays.items():
        array[...] = values(name.split("/")[0], array.shape, item)


async def _load_async(item: int, arrays: Any, seed: int | None) -> None:
    _load(item, arrays, seed)


WAYS: dict[str, dict[str, Any]] = {
    "processes": {"load": _load, "num_workers": 1},
    "thread": {"load": _load, "num_workers": 0},
    "coroutines": {"load": _load_async},
}


@pytest.mark.parametrize("way", list(WAYS))
async def test_every_bit_arrives(way: str) -> None:
    """Each dtype with rows of every shape: 0-d, empty and full, all in one batch."""
    arrays = {f"{d}/{shape}": (shape, d, d) for d in SAME for shape in SHAPES}
    group = DataGroup(ROWS, range(2 * ROWS), loader_arrays=arrays)
    options = dict(WAYS[way])
    loader = Loader(options.pop("load"), group, end_at=("epoch", 1), **options)
    first, second = await each(loader, host)
    for batch, items in ((first, range(ROWS)), (second, range(ROWS, 2 * ROWS))):
        for name, (shape, dtype, _) in arrays.items():
            expected = np.stack([values(dtype, shape, item) for item in items])
            assert batch[name].dtype == np.dtype(dtype)
            assert batch[name].shape == (ROWS, *shape)
            assert batch[name].tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("num_workers", [0, 1])
async def test_batches_may_have_no_bytes_at_all(num_workers: int) -> None:
    """Where every array is empty there is still a batch for every few items."""
    group = DataGroup(2, range(6), loader_arrays={"x": ((0, 3), "float32", "float32")})
    loader = Loader(_count, group, end_at=("epoch", 1), num_workers=num_workers)
    batches = await each(loader, lambda b: (b.arrays["x"].shape, list(b.additional["n"])))
    assert batches == [((2, 0, 3), [0, 1]), ((2, 0, 3), [2, 3]), ((2, 0, 3), [4, 5])]


def _count(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
    return {"n": item}


CONVERSIONS: list[tuple[str, str, list[Any]]] = [
    ("int64", "int32", [-(2**31), 2**31 - 1, 0]),
    ("int64", "uint32", [2**32 - 1, 0]),
    ("uint64", "uint32", [2**32 - 1, 0]),
    ("int64", "uint8", [255, 0]),
    ("float64", "float32", [0.1, -1e-40, 3.4e38]),
    ("float64", "bfloat16", [0.1, 3.14159]),
    ("complex128", "complex64", [1 + 2j, -0.1j]),
    ("uint8", "float32", [0, 255]),
    ("uint8", "bfloat16", [0, 255]),
    ("uint8", "bool", [0, 2, 255]),
    ("bool", "float32", [False, True]),
    ("int32", "float32", [2**24 + 1, -(2**31)]),
    ("float32", "float16", [0.1, 65504.0, 1e-8]),
    ("float32", "bfloat16", [3.14159, 1e30]),
    ("bfloat16", "float32", [3.140625, -0.0]),
    ("float32", "float8_e4m3fn", [3.3, -448.0]),
    ("float32", "int8", [1.7, -1.7, 127.9]),
    ("int8", "int4", [-8, 7]),
    ("int4", "int32", [-8, 7]),
    ("int64", "int4", [-8, 7]),
]
WIDE: list[tuple[str, str, list[Any]]] = [
    ("int64", "float32", [3_000_000_000, -5_000_000_000]),
    ("uint64", "float32", [2**63, 2**40]),
    ("int64", "bool", [2**32, 0]),
    ("float64", "int32", [16_777_217.0, -2_147_483_647.0]),
    ("float64", "uint32", [4_000_000_001.0, 1.0]),
    ("float64", "float16", [65_519.9999, 0.1]),
]


async def _converted(numpy_dtype: str, jax_dtype: str, given: list[Any], workers: int) -> Any:
    stored = np.array(given).astype(np.dtype(numpy_dtype))

    def load(item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = stored[item]

    arrays = {"x": ((), numpy_dtype, jax_dtype)}
    group = DataGroup(len(given), range(len(given)), loader_arrays=arrays)
    loader = Loader(load, group, end_at=("epoch", 1), num_workers=workers)
    ((batch),) = await each(loader, host)
    expected = stored.astype(np.dtype(jax_dtype))
    assert batch["x"].dtype == np.dtype(jax_dtype)
    assert batch["x"].tolist() == expected.tolist()


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(("numpy_dtype", "jax_dtype", "given"), CONVERSIONS)
async def test_a_batch_is_delivered_in_its_jax_dtype(
    numpy_dtype: str, jax_dtype: str, given: list[Any], num_workers: int
) -> None:
    """What is stored in one dtype arrives in the other, as numpy would convert it."""
    await _converted(numpy_dtype, jax_dtype, given, num_workers)


@pytest.mark.parametrize(("numpy_dtype", "jax_dtype", "given"), WIDE)
async def test_nothing_is_lost_on_the_way_that_the_jax_dtype_can_hold(
    numpy_dtype: str, jax_dtype: str, given: list[Any]
) -> None:
    """No detour: 3,000,000,000 stored as int64 is 3e9 as float32, and not a negative number."""
    await _converted(numpy_dtype, jax_dtype, given, 0)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64", "complex128"])
def test_a_jax_dtype_of_64_bits_is_refused_where_jax_has_none(dtype: str) -> None:
    """At construction, with the array, the dtype, and what to do; for validation groups too."""
    good = DataGroup(2, range(4), loader_arrays={"y": ((), dtype, "float32")})
    bad = DataGroup(2, range(4), loader_arrays={"x": ((), dtype, dtype)})
    for make in (
        lambda: Loader(_count, bad),
        lambda: Loader(_count, [good, bad]),
        lambda: Loader(_count, good, validation=("epoch", 1, bad)),
    ):
        with pytest.raises(LayoutError, match=f"'x'.*{dtype}.*jax_enable_x64"):
            make()


def test_cached_arrays_are_checked_as_well() -> None:
    """No array of JAX could ever match them."""
    arrays = {"x": ((), "int32", "int32")}
    group = DataGroup(
        2, range(4), loader_arrays=arrays, cache_arrays={"z": ((), "float64", "float64")}
    )
    with pytest.raises(LayoutError, match=r"cache_arrays.*'z'.*float64"):
        Loader(_count, group)


@pytest.mark.parametrize("dtype", ["float6_e2m3fn", "float6_e3m2fn"])
def test_a_dtype_that_jax_does_not_have_is_refused(dtype: str) -> None:
    """At construction of the group or of the loader, not batch by batch."""
    assert ml_dtypes.float6_e2m3fn is not None
    with pytest.raises(LayoutError, match=r"'x'.*float"):
        Loader(_count, DataGroup(2, range(4), loader_arrays={"x": ((), dtype, dtype)}))


X64 = """
import json, sys
import numpy as np, jax
jax.config.update("jax_enable_x64", True)
from aioloader import DataGroup, Loader, run

VALUES = {"int64": [-2**63, 2**63 - 1, 2**53 + 1], "uint64": [0, 2**64 - 1, 2**63],
          "float64": [0.1, 5e-324, 1.7e308], "complex128": [1e300 + 1e-300j, 0.1j, 1]}

def load(item, arrays, seed):
    for name, array in arrays.items():
        array[...] = VALUES.get(name, VALUES["int64"])[item]

async def main(num_workers):
    arrays = {name: ((), name, name) for name in VALUES} | {"f": ((), "int64", "float64")}
    group = DataGroup(3, range(3), loader_arrays=arrays)
    async with Loader(load, group, num_workers=num_workers, end_at=("epoch", 1)) as loader:
        async for batch in loader:
            return {n: (str(a.dtype), np.array(a).tobytes().hex()) for n, a in batch.arrays.items()}

for workers in (0, 1):
    print(json.dumps(run(main(workers))))
"""


def test_with_x64_every_bit_of_64_arrives(tmp_path: Path) -> None:
    """The same dtypes are then delivered as they are stored."""
    output, errors = script(tmp_path, X64).communicate(timeout=60)
    assert errors == ""
    expected = {
        "int64": np.array([-(2**63), 2**63 - 1, 2**53 + 1], "int64"),
        "uint64": np.array([0, 2**64 - 1, 2**63], "uint64"),
        "float64": np.array([0.1, 5e-324, 1.7e308], "float64"),
        "complex128": np.array([1e300 + 1e-300j, 0.1j, 1], "complex128"),
        "f": np.array([-(2**63), 2**63 - 1, 2**53 + 1], "int64").astype("float64"),
    }
    reports = [json.loads(line) for line in output.splitlines()]
    assert len(reports) == 2
    for report in reports:
        assert report == {n: [str(a.dtype), a.tobytes().hex()] for n, a in expected.items()}
