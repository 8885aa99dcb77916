"""Payloads: their bytes, in whatever they come."""

from __future__ import annotations

import array
import dataclasses
from typing import Any

import numpy as np
import pytest

from aioloader._fetching.payloads import payload_bytes


@dataclasses.dataclass
class Sample:
    image: bytes
    label: int


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (None, 0),
        (7, 0),
        (b"123", 3),
        (bytearray(4), 4),
        ("abc", 3),
        (memoryview(np.zeros((3, 5), "int32")), 60),
        (np.zeros((2, 3)), 48),
        (array.array("d", [1, 2]), 16),
        ((b"1", [b"22", {"x": b"333"}]), 6),
        ({"a": Sample(b"55555", 1), "b": None}, 5),
        ((3, b"12"), 2),
        (object(), 0),
    ],
)
def test_bytes_are_counted(payload: Any, expected: int) -> None:
    assert payload_bytes(payload) == expected


def test_what_refers_to_itself_is_counted_to_a_depth() -> None:
    payload: list[Any] = [b"1"]
    payload.append(payload)
    assert 1 <= payload_bytes(payload) <= 5
