"""Sizes: what a value keeps in memory, each part of it once."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from aioloader import DataCache

size = DataCache._data_size
NOTHING = size([None, None])


@dataclass(slots=True)
class Sample:
    """A dataclass without a dictionary."""

    image: np.ndarray
    name: str


class Plain:
    """An object with a dictionary."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image


def about(nbytes: int) -> Any:
    return pytest.approx(nbytes, rel=0.01)


def test_an_array_counts_once_and_so_does_what_others_are_views_of() -> None:
    """Owners, views, views of views and a shape of its own, in any order."""
    array = np.zeros((1000, 100))
    assert size(array) == about(800_000)
    assert size([array, array]) == about(800_000)
    views = [array[k : k + 10].T for k in range(50)]
    assert size(views) == about(800_000)
    assert size({"first": array[0], "all": array}) == about(800_000)
    assert size(array[0]) == about(800_000)  # it keeps the whole
    assert size([array, array.copy()]) == about(1_600_000)
    assert size(np.broadcast_to(np.zeros(1000), (1000, 1000))) < 9000


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"x" * 200_000,
        lambda: bytearray(200_000),
        lambda: "x" * 200_000,
        lambda: jnp.zeros(50_000, "float32"),
        lambda: np.frombuffer(b"x" * 200_000, np.uint8),
        lambda: memoryview(b"x" * 200_000),
        lambda: Sample(np.zeros(200_000, np.uint8), "a"),
        lambda: Plain(np.zeros(200_000, np.uint8)),
        lambda: ({"deep": [(np.zeros(100_000, np.uint8),)]}, {np.zeros(100_000, "i1").tobytes()}),
        lambda: np.array([b"x" * 100_000, [b"y" * 100_000]], object),
    ],
)
def test_everything_that_holds_bytes_is_counted(make: Any) -> None:
    """Strings of bytes, arrays of other libraries, and the parts of all containers, once."""
    value = make()
    assert size(value) == about(200_000)
    assert size([value, value]) == about(200_000)


def test_what_has_been_seen_counts_no_more() -> None:
    """A set of ids carries over from one call to the next, as in hyrax."""
    array = np.zeros(1000)
    seen: set[int] = set()
    first, second = size(array, seen), size([array, array[:5]], seen)
    assert first == about(8_000 + 112)
    assert second < 400
    assert id(array) in seen


def test_types_and_functions_are_nobodys_memory() -> None:
    """They belong to the program; containers of themselves end."""
    assert size([np.ndarray, size]) <= NOTHING
    loop: list[Any] = []
    loop.append(loop)
    assert size(loop) < 200


SHAPES: list[Any] = [
    lambda: np.ones((512, 512)),
    lambda: {"a": np.ones((300, 1000), "float32"), "b": np.ones(100_000, "int16")},
    lambda: np.ones((1000, 1000))[::2, ::2],
    lambda: (lambda a: {"whole": a, "rows": [a[k] for k in range(8)]})(np.ones((64, 10_000))),
    lambda: np.asfortranarray(np.ones((700, 500))),
    lambda: [np.ones(100_000), {"x": (np.ones(100_000),)}],
    lambda: np.ones((4000, 500))[7:900],
]


@pytest.mark.parametrize("make", SHAPES)
def test_the_charge_of_an_entry_is_what_the_interpreter_has_allocated(make: Any) -> None:
    """To one per cent, by tracemalloc, whatever the arrays share and are parts of."""
    config = {"data_set": {"use_cache": True, "preload_cache": False}}
    cache = DataCache(config, [0, 1, 2])
    cache.insert_into_cache(0, make())  # what is allocated once
    tracemalloc.start()
    try:
        gc.collect()
        before, charged = tracemalloc.get_traced_memory()[0], cache._data_size_bytes
        cache.insert_into_cache(1, make())
        gc.collect()
        allocated = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert cache._data_size_bytes - charged == pytest.approx(allocated, rel=0.01)
