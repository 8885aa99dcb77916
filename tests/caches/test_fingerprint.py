"""The fingerprint of data: the same in every process, another for other data, cheap."""

from __future__ import annotations

import collections
import datetime
import enum
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioloader._caches.fingerprint import fingerprint


class Kind(enum.Enum):
    A = 1
    B = 2


@dataclass(frozen=True)
class Item:
    path: Path
    kind: Kind
    box: tuple[int, ...] = ()


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x: object) -> None:
        self.x = x


Pair = collections.namedtuple("Pair", "a b")

ITEMS: list[Any] = [
    None,
    True,
    1,
    1.0,
    "1",
    b"1",
    (1,),
    [1],
    {1},
    {1: 1},
    1j,
    np.int64(1),
    np.float32(1),
    np.array([1]),
    np.array([1.0]),
    np.array([[1]]),
    np.array(["1", None], object),
    Path("1"),
    Path("2"),
    Kind.A,
    Kind.B,
    Item(Path("1"), Kind.A),
    Item(Path("1"), Kind.A, (1,)),
    Slotted(1),
    Slotted(2),
    Pair(1, 2),
    datetime.datetime(2026, 1, 1),
    datetime.date(2026, 1, 1),
    len,
    Item,
    collections.OrderedDict(a=1),
    collections.deque([1]),
    "\udcff",
]


def test_items_that_differ_have_other_fingerprints() -> None:
    """By value, type, shape, dtype and field."""
    prints = [fingerprint([item]) for item in ITEMS]
    assert len(set(prints)) == len(ITEMS)
    assert prints == [fingerprint([item]) for item in ITEMS]


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from test_fingerprint import ITEMS, fingerprint
print(fingerprint(ITEMS), fingerprint([{str(n) for n in range(50)}]))
"""


def test_it_is_the_same_in_every_process() -> None:
    """Whatever Python's hashes and addresses are there."""
    said = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(Path(__file__).parent)],
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        said.add(done.stdout)
    assert len(said) == 1


@given(st.lists(st.integers() | st.text(), min_size=2, max_size=40), st.data())
def test_any_change_to_few_items_is_seen(items: list[Any], data: st.DataObject) -> None:
    """Two that change places, one that comes or goes, one that is another."""
    before = fingerprint(items)
    one, two = (data.draw(st.integers(0, len(items) - 1)) for _ in range(2))
    swapped = list(items)
    swapped[one], swapped[two] = swapped[two], swapped[one]
    assert (fingerprint(swapped) == before) is (swapped == items)
    assert fingerprint([*items, "more"]) != before
    assert fingerprint(items[:-1]) != before


class Counted(Sequence[int]):
    """Very many items, of which it notes those that are asked for."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        self.asked.append(index)
        return index


@pytest.mark.parametrize("length", [1, 127, 128, 129, 200, 1000, 10**9])
def test_the_cost_does_not_grow_with_the_data(length: int) -> None:
    """The sample is spread over all of it, with its ends, and always the same."""
    one, two = Counted(length), Counted(length)
    assert fingerprint(one) == fingerprint(two)
    assert one.asked == two.asked
    asked = sorted(set(one.asked))
    assert len(asked) == len(one.asked) <= 128
    assert len(asked) >= min(length, 100)
    assert {0, length - 1} <= set(asked)
    if length > 128:
        steps = np.diff(asked)
        assert steps.max() <= 2 * length / 126 + 1
        assert len(set(steps.tolist())) > 1, "every nth item would not see a pattern of n"


def test_a_version_takes_the_place_of_the_sample() -> None:
    """No item is looked at, and the length is no part of it."""
    assert fingerprint(Counted(5), "a") == fingerprint(Counted(6), "a") != fingerprint([], "b")
    assert fingerprint([], 1) != fingerprint([], "1")
    counted = Counted(5)
    fingerprint(counted, "a")
    assert counted.asked == []


def test_items_that_no_other_process_would_recognise_are_named() -> None:
    """With what to do about it."""
    with pytest.raises(TypeError, match=r"data\[1\], of type lock, .*pass a data_version"):
        fingerprint([1, threading.Lock()])


def test_items_in_circles_are_no_trouble() -> None:
    """What refers to itself is told by where."""
    one: list[Any] = [1]
    one.append(one)
    two: list[Any] = [1]
    two.append([two])
    assert fingerprint([one]) == fingerprint([one]) != fingerprint([two])


def test_bad_versions_are_named() -> None:
    """By their type and length."""
    for version in (1.5, b"x", True):
        with pytest.raises(TypeError, match="data_version must be"):
            fingerprint([1], version)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data_version may have"):
        fingerprint([1], "x" * 1001)
