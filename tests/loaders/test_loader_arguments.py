"""A loader's arguments: checked when it is made, and named where they are wrong."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from loading import each
from support import script, simple_group, simple_load

import aioloader
from aioloader import Dataloader, Loader

if TYPE_CHECKING:
    from pathlib import Path

DEFAULTS: dict[str, Any] = {
    "validation": None,
    "fetch": None,
    "depth": 3,
    "num_workers": 1,
    "max_concurrency": 64,
    "start_at": (0, 0),
    "end_at": None,
    "interleave_groups": True,
    "deterministic": True,
    "timeout": 60.0,
    "on_error": "raise",
    "retries": 0,
    "item_timeout": None,
    "startup": None,
    "worker_nice": 10,
    "place": None,
    "vectorized": False,
    "executor": None,
    "cacher_count": None,
}


def test_parameters_have_the_documented_names_order_and_defaults() -> None:
    """`load` and `training` by position, everything else by name only."""
    parameters = list(inspect.signature(Loader).parameters.values())
    assert [p.name for p in parameters[:2]] == ["load", "training"]
    assert [p.kind for p in parameters[2:]] == [inspect.Parameter.KEYWORD_ONLY] * len(DEFAULTS)
    assert {p.name: p.default for p in parameters[2:]} == DEFAULTS


def test_a_dataloader_is_a_loader() -> None:
    """One class under two names."""
    assert Dataloader is Loader
    assert aioloader.Dataloader is aioloader.Loader


async def _fetch(item: int) -> int:
    return item


GROUP = simple_group(32)
WRONG: list[tuple[str, Any, type[Exception], str]] = [
    ("load", None, TypeError, "load=None"),
    ("load", "path", TypeError, "load='path'"),
    ("training", [], TypeError, r"training.*\[\]"),
    ("training", None, TypeError, "training.*None"),
    ("training", 5, TypeError, "training.*5"),
    ("training", range(8), TypeError, r"training.*range\(0, 8\)"),
    ("training", [GROUP, range(8)], TypeError, r"training.*range\(0, 8\)"),
    ("validation", GROUP, TypeError, "validation"),
    ("depth", True, TypeError, "depth must be a whole number, got True"),
    ("validation", ("epoch", 1), TypeError, r"validation.*\('epoch', 1\)"),
    ("validation", ("epoch", 1, None), TypeError, "validation.*None"),
    ("validation", ("epoch", 1, []), TypeError, r"validation.*\[\]"),
    ("validation", ("epoch", 0, GROUP), ValueError, "validation.*0"),
    ("validation", ("epoch", 1.5, GROUP), TypeError, "validation.*1.5"),
    ("validation", ("step", 1, GROUP), ValueError, "validation.*'step'"),
    ("fetch", 5, TypeError, "fetch=5"),
    ("fetch", len, TypeError, "fetch=<built-in function len>.*async def"),
    ("depth", 0, ValueError, "depth.*0"),
    ("depth", -1, ValueError, "depth.*-1"),
    ("depth", 2.0, TypeError, "depth.*2.0"),
    ("depth", None, TypeError, "depth.*None"),
    ("num_workers", -1, ValueError, "num_workers.*-1"),
    ("num_workers", None, TypeError, "num_workers.*None"),
    ("num_workers", "2", TypeError, "num_workers.*'2'"),
    ("max_concurrency", 0, ValueError, "max_concurrency.*0"),
    ("max_concurrency", 1.5, TypeError, "max_concurrency.*1.5"),
    ("start_at", 5, TypeError, "start_at.*5"),
    ("start_at", (0,), TypeError, r"start_at.*\(0,\)"),
    ("start_at", "ab", TypeError, "start_at.*'ab'"),
    ("start_at", (-1, 0), ValueError, "start_at.*-1"),
    ("start_at", (0, -2), ValueError, "start_at.*-2"),
    ("start_at", (0.5, 0), TypeError, "start_at.*0.5"),
    ("end_at", 5, TypeError, "end_at.*5"),
    ("end_at", ("epoch",), TypeError, r"end_at.*\('epoch',\)"),
    ("end_at", ("epochs", 1), ValueError, "end_at.*'epochs'"),
    ("end_at", ("epoch", -1), ValueError, "end_at.*-1"),
    ("end_at", ("batch", 2.5), TypeError, "end_at.*2.5"),
    ("end_at", ("epoch", None), TypeError, "end_at.*None"),
    ("timeout", -1, ValueError, "timeout=-1"),
    ("timeout", float("nan"), ValueError, "timeout=nan"),
    ("timeout", "60", TypeError, "timeout='60'"),
    ("on_error", "skip", ValueError, "on_error='skip'.*raise.*drop"),
    ("on_error", None, ValueError, "on_error=None"),
    ("retries", -1, ValueError, "retries.*-1"),
    ("retries", None, TypeError, "retries.*None"),
    ("item_timeout", 0, ValueError, "item_timeout=0"),
    ("item_timeout", -0.5, ValueError, "item_timeout=-0.5"),
    ("item_timeout", "1", TypeError, "item_timeout='1'"),
    ("startup", 5, TypeError, "startup=5"),
    ("worker_nice", -1, ValueError, "worker_nice.*-1"),
    ("worker_nice", 20, ValueError, "worker_nice.*20"),
    ("worker_nice", 1.0, TypeError, "worker_nice.*1.0"),
    ("place", "cpu", TypeError, "place='cpu'"),
    ("place", [1], TypeError, r"place=\[1\]"),
    ("executor", 5, TypeError, "executor=5"),
]


@pytest.mark.parametrize(
    ("name", "value", "kind", "message"), WRONG, ids=[f"{w[0]}={w[1]!r}"[:40] for w in WRONG]
)
def test_a_wrong_argument_is_an_error_that_names_it(
    name: str, value: Any, kind: type[Exception], message: str
) -> None:
    """At construction, with the parameter and the value."""
    arguments: dict[str, Any] = {"load": simple_load, "training": GROUP, name: value}
    with pytest.raises(kind, match=message):
        Loader(arguments.pop("load"), arguments.pop("training"), **arguments)


@pytest.mark.parametrize(
    ("start_at", "end_at"),
    [
        ((0, 0), ("epoch", 0)),
        ((0, 0), ("batch", 0)),
        ((1, 0), ("epoch", 1)),
        ((1, 0), ("batch", 4)),
        ((0, 5), ("epoch", 1)),
        ((2, 1), ("batch", 9)),
        ((2, 1), ("epoch", 1)),
    ],
)
def test_an_end_at_or_before_the_start_is_an_error(start_at: Any, end_at: Any) -> None:
    """It counts from the beginning; the message shows both."""
    with pytest.raises(ValueError, match=r"end_at=.*start_at=.*from the beginning"):
        Loader(simple_load, GROUP, start_at=start_at, end_at=end_at)


GOOD: list[dict[str, Any]] = [
    {"timeout": None},
    {"timeout": 0},
    {"timeout": float("inf")},
    {"depth": np.int64(2), "num_workers": np.int8(0), "max_concurrency": np.uint16(3)},
    {"start_at": [np.int64(0), np.int32(1)], "end_at": ["batch", np.int64(3)]},
    {"validation": ["batch", 1, [simple_group(8)]], "end_at": ["batch", 2]},
    {"worker_nice": 0, "num_workers": 1},
    {"fetch": functools.partial(_fetch)},
    {"item_timeout": 30.0, "retries": 3},
    {"training": iter([simple_group(8), simple_group(16)])},
    {"training": (simple_group(8),)},
]


@pytest.mark.parametrize("arguments", GOOD, ids=lambda value: ",".join(value))
async def test_arguments_may_come_in_any_sensible_kind(arguments: dict[str, Any]) -> None:
    """Numbers of numpy, lists as from JSON, groups from any iterable: all of them load."""
    options = {"end_at": ("batch", 2), "num_workers": 0} | arguments
    loader = Loader(simple_load, options.pop("training", GROUP), **options)
    assert len(await each(loader, lambda batch: batch.group_index)) >= 2


EARLY = """
import jax
from aioloader import DataGroup, Loader, wait_ready

arrays = {"x": ((), "int32", "int32"), "y": ((), "float8_e4m3fn", "bfloat16")}
group = DataGroup(2, range(8), loader_arrays=arrays, cache_arrays=arrays)
loader = Loader(print, group, validation=("epoch", 1, group))
jax.config.update("jax_num_cpu_devices", 3)  # an error once JAX has started
print(len(jax.devices()), loader.batches_per_epoch)
"""


def test_making_a_loader_does_not_start_jax(tmp_path: Path) -> None:
    """Programs set JAX up after that, `jax.distributed.initialize` included."""
    output, errors = script(tmp_path, EARLY).communicate(timeout=60)
    assert (output, errors) == ("3 4\n", "")


def test_making_a_loader_starts_nothing() -> None:
    """No process, no memory, no event loop: leaving it unused is no error."""
    loader = Loader(simple_load, simple_group(10**9), num_workers=64, depth=10_000)
    assert repr(loader) == "<Loader: at 0, not running>"
    assert loader.statistics().loading == 0


def test_a_coroutine_function_for_place_is_refused() -> None:
    """It runs in a helper thread, where nothing would await it."""

    async def place(arrays: Any, layouts: Any, additional: Any, group: Any) -> Any: ...

    with pytest.raises(TypeError, match="place"):
        Loader(simple_load, GROUP, place=place)
