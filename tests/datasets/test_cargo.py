"""Cargo: elements into the bytes of a slot, and out of them again as they were."""

from __future__ import annotations

import ctypes
import gc
import pickle
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from aioloader._datasets.cargo import LARGE_BYTES, Loader, load, unload


def slot(nbytes: int = 1 << 20) -> np.ndarray:
    return np.zeros(nbytes, np.uint8)


LARGE = np.arange(LARGE_BYTES, dtype="int16").reshape(64, -1)
TWICE = np.arange(5)
ELEMENTS: list[Any] = [
    {"b": np.arange(3), "a": 1, "text": "t", "none": None},
    {"b": np.arange(3) + 1, "a": 2, "text": "t" * 10_000, "none": None},
    (LARGE, np.asfortranarray(LARGE), LARGE[::2, ::-1], [LARGE[:0]]),
    [np.array(7), np.zeros((0, 4)), np.float32(2.5), np.array(["x", "yz"]), np.arange(4)[::-1]],
    {"when": np.zeros(3000, "M8[s]"), "objects": np.array([None, "o"], object)},
    np.ma.masked_array([1, 2], [True, False]),
    (TWICE, TWICE),
    b"bytes" * 5000,
]


def check(got: list[Any]) -> None:
    def same(left: Any, right: Any) -> None:
        assert type(left) is type(right)
        if isinstance(left, dict):
            assert list(left) == list(right)
            same(list(left.values()), list(right.values()))
        elif isinstance(left, (list, tuple)):
            assert len(left) == len(right)
            for one, other in zip(left, right, strict=True):
                same(one, other)
        elif isinstance(left, np.ndarray):
            assert (left.dtype, left.shape) == (right.dtype, right.shape)
            assert np.ma.allequal(left, right) if left.dtype.kind == "i" else (left == right).all()
        else:
            assert left == right

    same(got, ELEMENTS)
    assert got[2][1].flags.f_contiguous
    assert got[6][0] is got[6][1]


@pytest.mark.parametrize("room", [0, 1000, 20_000, 1 << 20])
@pytest.mark.parametrize("lend", [True, False])
def test_elements_are_what_they_were(room: int, lend: bool) -> None:
    """Wherever there is room for them: what does not fit is part of the message."""
    memory = slot(room)
    cargo = pickle.loads(pickle.dumps(load(ELEMENTS, memory)))
    check(unload(cargo, memory, lend=lend))
    assert bool(cargo.apart) == (room < 1 << 20)
    assert cargo.nbytes > 80_000
    needed = slot(cargo.nbytes)
    assert not load(ELEMENTS, needed).apart


def test_elements_may_come_in_several_runs() -> None:
    """One that does not pickle leaves nothing of itself, nor of what came with it."""
    memory = slot()
    loader = Loader(memory)
    loader.add(ELEMENTS[:3])
    for _ in range(2):
        with pytest.raises(TypeError, match="pickle"):
            loader.add([np.arange(3), np.zeros(77), LARGE, threading.Lock()])
    for element in ELEMENTS[3:]:
        loader.add([element])
    foreseen = loader.nbytes
    cargo = loader.finish()
    check(unload(cargo, memory, lend=False))
    assert cargo.nbytes == pytest.approx(foreseen, rel=0.2)


class Local:
    """Not to be found by name: it travels by value."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array


Local.__module__ = "__main__"


def test_what_workers_cannot_import_travels_by_value() -> None:
    memory = slot()
    elements = [Local(np.arange(k)) for k in range(3)]
    got = unload(load([*elements, lambda: 5], memory), memory, lend=False)
    assert [x.array.tolist() for x in got[:3]] == [[], [0], [0, 1]]
    assert got[3]() == 5


def test_only_large_arrays_are_lent() -> None:
    """They keep the slot for as long as a view of them lives; without a loan nothing does."""
    lease = (ctypes.c_char * (1 << 20))()
    ended: list[int] = []
    weakref.finalize(lease, ended.append, 1)
    memory = np.frombuffer(lease, np.uint8)
    del lease
    cargo = load([LARGE, np.arange(10)], memory)
    assert cargo.is_lent
    copied = unload(cargo, memory, lend=False)
    large, small = unload(cargo, memory, lend=True)
    assert np.shares_memory(large, memory)
    assert large.flags.writeable
    assert small.base is None
    assert all(array.base is None for array in copied)
    view = large[3:, :2]
    del memory, large
    gc.collect()
    assert not ended
    del view
    assert ended
    assert np.array_equal(copied[0], LARGE)
    assert not load([np.arange(10)], slot()).is_lent
