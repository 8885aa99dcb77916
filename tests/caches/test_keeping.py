"""Keeping: nothing that anybody does to a value is seen by anybody else."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aioloader._caches.keeping import Unkeepable, is_light, keep

Pair = namedtuple("Pair", ["left", "right"])


@dataclass(frozen=True, slots=True)
class Frozen:
    """A frozen dataclass without a dictionary."""

    image: np.ndarray
    tags: list[str]


@dataclass
class Open:
    """A dataclass with more than its fields."""

    image: np.ndarray
    parts: dict[str, Any] = field(default_factory=dict)
    label: str = "a"


class Unknown:
    """A class of the user's."""

    def __init__(self) -> None:
        self.image = np.arange(3)


def same(one: Any, other: Any) -> bool:
    """Compare two trees."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict | MappingProxyType):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Frozen | Open | Unknown):
        names = [n for n in ("image", "tags", "parts", "extra", "label") if hasattr(one, n)]
        return all(same(getattr(one, n), getattr(other, n)) for n in names)
    return bool(one == other)


def spoil(value: Any) -> None:
    """Change all that can be changed in a value."""
    if isinstance(value, np.ndarray):
        if value.flags.writeable:
            value[...] = 99
        if value.size == 6 and value.flags.c_contiguous:
            value.shape = (6,)
    elif isinstance(value, dict):
        for part in value.values():
            spoil(part)
        value.clear()
    elif isinstance(value, MappingProxyType):
        for part in value.values():
            spoil(part)
    elif isinstance(value, list | tuple):
        for part in value:
            spoil(part)
        if isinstance(value, list):
            value.append("spoilt")
    elif isinstance(value, bytearray | set):
        value.clear()
    elif isinstance(value, Frozen | Open | Unknown):
        for name in ("image", "tags", "parts", "extra"):
            spoil(getattr(value, name, None))
        if not isinstance(value, Frozen):
            value.image = np.zeros(1)
            value.label = "spoilt"


def extended(value: Open) -> Open:
    value.extra = [1]  # type: ignore[attr-defined]
    return value


VALUES: dict[str, Any] = {
    "array": lambda: np.arange(6).reshape(2, 3),
    "zero dimensions": lambda: np.array(3.5),
    "empty": lambda: np.zeros((0, 3)),
    "big endian": lambda: np.arange(5, dtype=">i4"),
    "records": lambda: np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
    "bfloat16": lambda: np.arange(4).astype(jnp.bfloat16),
    "part": lambda: np.arange(1000)[10:16],
    "backwards": lambda: np.arange(10)[::-1],
    "shared": lambda: (lambda a: [a, a[0], a.T, a[:, ::-1]])(np.arange(6).reshape(2, 3)),
    "fortran": lambda: (lambda a: [a, a[:, 0]])(np.asfortranarray(np.arange(6).reshape(2, 3))),
    "broadcast": lambda: np.broadcast_to(np.arange(3), (4, 3)),
    "bytes below": lambda: np.frombuffer(b"abcdef", np.uint8),
    "large": lambda: np.arange(20_000.0),
    "nested": lambda: {"t": {"x": np.arange(3), "id": "a"}, "l": [1, np.arange(2), (2, [3])]},
    "ordered": lambda: OrderedDict(b=np.arange(2), a=1),
    "default": lambda: defaultdict(list, a=[1]),
    "proxy": lambda: MappingProxyType({"x": np.arange(3), "l": [1]}),
    "pair": lambda: Pair(np.arange(3), [1]),
    "bytearray": lambda: bytearray(b"abc"),
    "set": lambda: {1, 2},
    "frozen": lambda: Frozen(np.arange(3), ["a"]),
    "open": lambda: extended(Open(np.arange(3), {"y": np.arange(2)})),
    "unknown": Unknown,
    "objects": lambda: np.array([[1], "a"], object),
    "plain": lambda: ("a", 1, None, 2.5, b"x", frozenset((1, 2)), np.float32(3)),
}


@pytest.mark.parametrize("name", VALUES)
def test_what_others_do_to_a_value_is_not_seen(name: str) -> None:
    """Neither its maker, nor a consumer before; and it has the types and values it had."""
    mine, untouched = VALUES[name](), VALUES[name]()
    kept = keep(mine)
    spoil(mine)
    for _ in range(3):
        value = kept.make()
        assert type(value) is type(untouched)
        assert same(value, untouched)
        spoil(value)


@pytest.mark.parametrize("name", ["array", "part", "shared", "large", "nested", "fortran"])
def test_arrays_are_read_only_for_good(name: str) -> None:
    """Nobody can make them writable, not by way of what they are views of either."""

    def check(value: Any) -> None:
        if isinstance(value, np.ndarray):
            assert not value.flags.writeable
            with pytest.raises(ValueError, match="WRITEABLE"):
                value.flags.writeable = True
            if value.base is not None:
                assert not value.base.flags.writeable
        elif isinstance(value, dict):
            [check(part) for part in value.values()]
        elif isinstance(value, list | tuple):
            [check(part) for part in value]

    check(keep(VALUES[name]()).make())


def test_a_row_does_not_keep_what_it_is_a_row_of() -> None:
    """Copied out; but what is shown whole, by views together, is copied once and together."""
    table = np.zeros((1000, 1000))
    row = keep(table[3]).make()
    assert row.base.nbytes < 9000
    halves = keep([table[:500], table[500:]]).make()
    assert halves[0].base is halves[1].base
    twice = keep([table, table]).make()
    assert np.shares_memory(*twice)


def test_jax_takes_over_what_is_large_enough() -> None:
    """The copies are aligned as JAX wants them."""
    kept = keep({"a": np.ones((64, 64), "float32"), "b": np.ones(8192, "int8")})
    for array in kept.make().values():
        assert array.ctypes.data % 64 == 0


def test_jax_arrays_are_handed_out_as_they_are() -> None:
    """They are immutable, and stay where they are."""
    array = jnp.arange(3)
    assert keep([array]).make()[0] is array


def test_what_cannot_be_copied_is_refused() -> None:
    """Locks, generators, and what contains itself."""
    endless: list[Any] = []
    endless.append(endless)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (threading.Lock(), {"g": (k for k in ())}, endless, deep):
        with pytest.raises(Unkeepable):
            keep(value)
    while deep:
        deep = deep.pop()  # or its end would be as deep


def test_what_is_light_is_kept_on_the_loop() -> None:
    """Little arrays in little containers, and nothing whose copy might take long."""
    assert is_light({"x": np.zeros(100), "y": [1, "a", (2,)]})
    assert not is_light(np.zeros(100_000))
    assert not is_light([0] * 1000)
    assert not is_light(Unknown())


def test_a_donated_array_is_gone() -> None:
    """Whoever donates it takes it from the cache, which then has a miss."""
    from aioloader import DataCache

    config = {"data_set": {"use_cache": True, "preload_cache": False}}
    cache = DataCache(config, [lambda: 0])
    cache._rows.resolve = lambda index: jnp.arange(4.0)
    first = cache[0]
    assert cache[0] is first
    jax.jit(lambda x: x + 1, donate_argnums=0)(first)
    first.delete()
    assert cache.try_fetch(0) is None
    assert float(cache[0][3]) == 3.0
    now = cache.statistics()
    assert (now.hits, now.misses, now.evictions, now.items) == (1, 3, 1, 1)
