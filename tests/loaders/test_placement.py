"""Placement: devices, shardings and functions of the user's, checked against the layouts."""

from __future__ import annotations

import json
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loading import additional, each, host
from support import script

from aioloader import DataGroup, Loader, LoadError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aioloader import Batch

ARRAYS = {"x": ((3,), "int32", "float32"), "y": ((), "uint8", "uint8")}
CACHE = {"code": ((2,), "float32", "float32")}


def _load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
    arrays["x"][...] = item
    arrays["y"][...] = (item + 1) % 256
    return {"name": f"item {item}"}


def _group(length: int = 12, **options: Any) -> DataGroup[int]:
    return DataGroup(4, range(length), **{"loader_arrays": ARRAYS, **options})


def _loader(group: DataGroup[int] | None = None, **options: Any) -> Loader[int]:
    return Loader(
        options.pop("load", _load),
        group or _group(),
        **{"num_workers": 0, "end_at": ("epoch", 1), **options},
    )


def _put(arrays: Any, layouts: Any, additional: Any, group: Any) -> dict[str, jax.Array]:
    return {n: jax.device_put(a).astype(layouts[n].jax_dtype) for n, a in arrays.items()}


async def test_by_default_arrays_are_on_the_default_device_and_not_bound_to_it() -> None:
    """They go along with whatever they are computed with."""
    for batch in await each(_loader(), lambda b: dict(b.arrays)):
        for array in batch.values():
            assert array.devices() == {jax.devices()[0]}
            assert not array.committed


@pytest.mark.parametrize(
    "place", [jax.devices()[0], jax.sharding.SingleDeviceSharding(jax.devices()[0])]
)
@pytest.mark.parametrize("num_workers", [0, 1])
async def test_a_device_or_a_sharding_binds_them(place: Any, num_workers: int) -> None:
    """With the same content and dtypes, and nothing overwritten while it is used."""
    group = _group(400)
    batches = await each(
        _loader(group, place=place, num_workers=num_workers, depth=2),
        lambda b: (list(b.indices), host(b), {a.committed for a in b.arrays.values()}),
    )
    assert len(batches) == 100
    for indices, arrays, committed in batches:
        assert committed == {True}
        assert (arrays["x"] == np.array(indices, "float32")[:, None]).all()
        assert arrays["x"].dtype == np.float32
        assert arrays["y"].tolist() == [(index + 1) % 256 for index in indices]


@pytest.mark.parametrize("num_workers", [0, 1])
async def test_a_function_gets_everything_off_the_loop(num_workers: int) -> None:
    """Arrays as they were filled, layouts, additional data and the group; not on the loop."""
    group, here = _group(), threading.get_ident()
    calls: list[Any] = []

    def place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
        filled = {n: (a.dtype.name, a.tolist()) for n, a in arrays.items()}
        calls.append((filled, layouts, dict(additional), group, threading.get_ident()))
        return _put(arrays, layouts, additional, group)

    batches = await each(_loader(group, place=place, num_workers=num_workers), host)
    assert len(calls) == len(batches) == 3
    for k, (filled, layouts, extras, given, thread) in enumerate(calls):
        items = list(range(4 * k, 4 * k + 4))
        assert filled["x"] == ("int32", [[item] * 3 for item in items])
        assert filled["y"] == ("uint8", [item + 1 for item in items])
        assert layouts is group.loader_layouts
        assert list(extras["name"]) == [f"item {item}" for item in items]
        assert given is group
        assert thread != here
        assert batches[k]["x"][:, 0].tolist() == items


async def test_items_are_looked_up_while_a_batch_is_placed() -> None:
    """Neither waits for the other, so that the time of each is its own."""
    later = threading.Event()
    came: list[bool] = []

    class Data:
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> int:
            if index == 12:
                later.set()
            return index

    def place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
        if arrays["y"][0] == 5:  # the second batch, while there is room for the fourth
            came.append(later.wait(2))
        return _put(arrays, layouts, additional, group)

    group = DataGroup(4, Data(), loader_arrays=ARRAYS)
    async with _loader(group, place=place, depth=3) as loader:
        with await anext(loader):
            pass
        assert (await anext(loader)).group_index == 1
    assert came == [True]


class _Scaling:
    """A strategy that is an object."""

    def __call__(self, arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
        return MappingProxyType(
            {n: jnp.asarray(a, layouts[n].jax_dtype) * 2 for n, a in arrays.items()}
        )


async def test_a_strategy_may_change_what_is_in_the_arrays() -> None:
    """Any callable, any mapping: what it returns is what is delivered."""
    batches = await each(_loader(place=_Scaling(), num_workers=1), host)
    assert [b["x"][:, 0].tolist() for b in batches] == [
        [2.0 * item for item in range(4 * k, 4 * k + 4)] for k in range(3)
    ]


async def test_what_a_strategy_computes_late_reads_what_was_loaded() -> None:
    """Results that are still being computed when the batch is delivered are right."""

    @jax.jit
    def late(x: Any) -> Any:
        y = jax.lax.fori_loop(0, 200, lambda i, c: c * 1.0 + 0.0, x.astype("float32"))
        return y.reshape(4, -1).mean(1)

    arrays = {"x": ((50_000,), "int32", "float32")}

    def load(item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = item

    def place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
        return {"code": jnp.stack([late(jnp.asarray(arrays["x"]))] * 2, 1)}

    group = DataGroup(4, range(160), loader_arrays=arrays, cache_arrays=CACHE)
    loader = Loader(load, group, place=place, num_workers=1, depth=2, end_at=("epoch", 1))
    results = await each(loader, lambda b: (list(b.indices), b.arrays["code"]))
    for indices, code in results:
        assert code[:, 0].tolist() == pytest.approx(indices)


Faulty = dict[str, tuple[Any, str]]
FAULTS: Faulty = {
    "None": (lambda arrays: None, "NoneType.*mapping"),
    "a list": (lambda arrays: list(arrays.values()), "list.*mapping"),
    "a missing array": (lambda arrays: {"x": arrays["x"]}, r"\['x'\].*\['x', 'y'\]"),
    "an array more": (lambda arrays: {**arrays, "z": arrays["x"]}, r"'z'"),
    "another name": (lambda arrays: {"X": arrays["x"], "y": arrays["y"]}, r"'X'"),
    "another shape": (lambda arrays: {**arrays, "x": arrays["x"].T}, r"'x'.*\[3, 4\].*\[4, 3\]"),
    "too few rows": (lambda arrays: {**arrays, "y": arrays["y"][:2]}, r"'y'.*\[2\].*\[4\]"),
    "another dtype": (
        lambda arrays: {**arrays, "x": arrays["x"].astype("float16")},
        "'x'.*float16.*float32",
    ),
    "numpy": (lambda arrays: {**arrays, "y": np.asarray(arrays["y"])}, "'y'.*ndarray"),
    "a number": (lambda arrays: {**arrays, "y": 3}, "'y'.*int"),
}


@pytest.mark.parametrize("kind", list(FAULTS))
async def test_what_is_not_as_declared_is_an_error_that_names_it(kind: str) -> None:
    """With what was returned and what is declared, in that batch's turn; the others arrive."""
    spoil, message = FAULTS[kind]

    def place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
        placed = _put(arrays, layouts, additional, group)
        return spoil(placed) if arrays["y"][0] == 5 else placed

    message = f"batch 1 of training group 0, epoch 0.*place.*{message}"
    async with _loader(place=place) as loader:
        assert (await anext(loader)).group_index == 0
        with pytest.raises(LoadError, match=message) as caught:
            await anext(loader)
        assert [batch.group_index async for batch in loader] == [2]
    assert (caught.value.group, caught.value.batch) == ("training group 0", 1)
    assert caught.value.row is None


async def test_an_exception_of_a_strategy_is_the_cause_of_the_error() -> None:
    """Itself, with its traceback."""

    def place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
        raise ZeroDivisionError("in the strategy")

    async with _loader(place=place) as loader:
        with pytest.raises(LoadError, match=r"place failed.*in the strategy") as caught:
            await anext(loader)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def _deep(arrays: Any) -> None:
    view = arrays["x"]
    raise KeyError(view.shape)


async def test_errors_that_are_kept_keep_no_slots() -> None:
    """Nor do the exceptions that they were raised from, whose frames saw the arrays."""

    def place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
        if arrays["y"][0] in (1, 5):
            try:
                _deep(arrays)
            except KeyError as error:
                raise ValueError("outer") from error
        return _put(arrays, layouts, additional, group)

    kept: list[LoadError] = []
    seen: list[int] = []
    async with _loader(_group(40), place=place, depth=2, timeout=1) as loader:
        while len(kept) < 2:
            try:
                await anext(loader)
            except LoadError as error:
                kept.append(error)
        async for batch in loader:
            seen.append(batch.group_index)
            del batch
    assert seen == list(range(2, 10))


def _encode(arrays: Any, layouts: Any, additional: Any, group: Any) -> dict[str, jax.Array]:
    return {"code": jnp.asarray(arrays["x"][:, :2], "float32") / 2}


async def test_an_encoder_delivers_batches_as_cached() -> None:
    """What it returns matches `cache_arrays`, and so the batch needs no conversion."""
    group = _group(cache_arrays=CACHE)

    def check(batch: Batch[Any]) -> list[float]:
        assert not batch.uncached
        assert batch.layouts is group.cache_layouts
        assert list(batch.arrays) == ["code"]
        assert list(batch.additional["name"]) == [f"item {k}" for k in batch.indices]
        with pytest.raises(RuntimeError, match="cached"):
            batch.cache(dict(batch.arrays))
        return batch.arrays["code"][:, 1].tolist()

    codes = await each(_loader(group, place=_encode), check)
    assert codes == [[0.0, 0.5, 1.0, 1.5], [2.0, 2.5, 3.0, 3.5], [4.0, 4.5, 5.0, 5.5]]


async def test_an_encoder_delivers_a_smaller_last_batch_as_cached_too() -> None:
    """All of an epoch's batches are in the same state."""
    group = _group(6, cache_arrays=CACHE, drop_remainder=False)
    states = await each(_loader(group, place=_encode), lambda b: (len(b.indices), b.uncached))
    assert states == [(4, False), (2, False)]


async def test_a_strategy_may_decide_batch_by_batch() -> None:
    """Some as loaded, some as cached; what is neither is told with both."""
    group = _group(cache_arrays=CACHE)

    def place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
        which = arrays["y"][0]
        if which == 9:
            return {"code": jnp.zeros((4, 9))}
        return (_put if which == 1 else _encode)(arrays, layouts, additional, group)

    async with _loader(group, place=place) as loader:
        assert (await anext(loader)).uncached
        assert not (await anext(loader)).uncached
        with pytest.raises(LoadError, match=r"loader_arrays.*cache_arrays.*4, 9.*4, 2"):
            await anext(loader)


async def test_groups_without_cache_arrays_cannot_be_encoded() -> None:
    """The declared arrays are the loader's, and the message says so."""
    async with _loader(place=_encode) as loader:
        with pytest.raises(LoadError, match=r"loader_arrays.*'code'.*'x', 'y'"):
            await anext(loader)


async def test_a_strategy_serves_all_groups() -> None:
    """Training and validation, each with its own layouts."""
    other = DataGroup(2, range(4), loader_arrays={"z": ((), "int8", "int32")})
    seen: list[Any] = []

    def place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any:
        seen.append(group)
        return _put(arrays, layouts, additional, group)

    def load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
        for array in arrays.values():
            array[...] = item
        return {"item": item}

    group = _group(8)
    loader = _loader(group, load=load, place=place, validation=("epoch", 1, other))
    names = await each(loader, lambda b: (sorted(b.arrays), additional(b)["item"]))
    assert names == [
        (["x", "y"], [0, 1, 2, 3]),
        (["x", "y"], [4, 5, 6, 7]),
        (["z"], [0, 1]),
        (["z"], [2, 3]),
    ]
    assert seen == [group, group, other, other]


SHARDED = """
import json, os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from aioloader import DataGroup, LoadError, Loader, run

ARRAYS = {"x": ((64, 2), "int32", "int32"), "y": ((), "uint8", "float32")}
DEVICES = jax.devices()
LINE, GRID = Mesh(DEVICES, ("data",)), Mesh(np.array(DEVICES).reshape(2, 2), ("data", "model"))

def load(item, arrays, seed):
    arrays["x"][...] = item
    arrays["y"][...] = item % 256

def is_right(batch):
    x, y = np.asarray(batch.arrays["x"]), np.asarray(batch.arrays["y"])
    want = np.array(batch.indices)
    return bool((x == want[:, None, None]).all() and (y == want % 256).all())

async def check(place, length=800, batch_size=8, **options):
    group = DataGroup(batch_size, range(length), loader_arrays=ARRAYS, **options)
    report = {"right": 0, "shards": set(), "shapes": set(), "error": ""}
    late = []
    loader = Loader(load, group, place=place, depth=3, num_workers=1, end_at=("epoch", 1))
    async with loader:
        while True:
            try:
                batch = await anext(loader, None)
            except LoadError as error:
                report["error"] = str(error)
                continue
            if batch is None:
                break
            x = batch.arrays["x"]
            report["shards"].add(len({s.device for s in x.addressable_shards}))
            report["shapes"].add(str([s.data.shape for s in x.addressable_shards][0]))
            late.append((batch.indices[0], x.sum()))  # read when its slot may be filled again
            report["right"] += is_right(batch)
            del batch, x
    report["late"] = all(int(s) == sum(range(i, i + batch_size)) * 128 for i, s in late)
    return {k: sorted(v) if isinstance(v, set) else v for k, v in report.items()}

def by_hand(arrays, layouts, additional, group):
    sharding = NamedSharding(LINE, P("data"))
    return {n: jax.make_array_from_process_local_data(sharding, a.astype(layouts[n].jax_dtype))
            for n, a in arrays.items()}

print(json.dumps({
    "second device": run(check(DEVICES[2])),
    "over the batch": run(check(NamedSharding(LINE, P("data")))),
    "everywhere": run(check(NamedSharding(GRID, P()))),
    "over half": run(check(NamedSharding(GRID, P("data")))),
    "by hand": run(check(by_hand)),
    "uneven": run(check(NamedSharding(LINE, P("data")), length=22, drop_remainder=False)),
}))
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the program once: the number of devices is fixed when JAX starts."""
    path: Path = tmp_path_factory.mktemp("sharded")
    output, errors = script(path, SHARDED).communicate(timeout=100)
    assert errors == ""
    report: dict[str, Any] = json.loads(output)
    return report


SHARDINGS: dict[str, tuple[int, str]] = {
    "second device": (1, "(8, 64, 2)"),
    "over the batch": (4, "(2, 64, 2)"),
    "everywhere": (4, "(8, 64, 2)"),
    "over half": (4, "(4, 64, 2)"),
    "by hand": (4, "(2, 64, 2)"),
}


@pytest.mark.parametrize("way", list(SHARDINGS))
def test_batches_are_spread_over_devices(way: str, sharded: dict[str, Any]) -> None:
    """Each device has its part; all hundred batches are right, at once and later."""
    devices, shape = SHARDINGS[way]
    assert sharded[way] == {
        "right": 100,
        "late": True,
        "shards": [devices],
        "shapes": [shape],
        "error": "",
    }


def test_a_batch_that_cannot_be_spread_is_an_error_of_its_own(sharded: dict[str, Any]) -> None:
    """The smaller last one: named in its turn, and the others arrive."""
    report = sharded["uneven"]
    assert report["right"] == 2
    assert "batch 2 of training group 0, epoch 0" in report["error"]
    assert "place failed" in report["error"]


def test_strategies_are_told_from_what_is_none() -> None:
    """The error at construction lists what may be given."""
    bad: list[Callable[..., Any] | Any] = ["gpu", 3, [jax.devices()[0]], {"x": None}]
    for place in bad:
        with pytest.raises(TypeError, match=r"place=.*Device.*Sharding.*function"):
            _loader(place=place)
