"""Latency: quantiles of the last few, whoever adds them."""

from __future__ import annotations

import math
import sys
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from aioloader._fetching.latency import Latency


@given(
    added=st.lists(st.floats(0, 1e6), max_size=60),
    window=st.integers(1, 20),
    share=st.floats(0, 1, exclude_min=True),
)
def test_quantiles_are_those_of_the_last_few(added: list[float], window: int, share: float) -> None:
    latency = Latency(window)
    for seconds in added:
        latency.add(seconds)
    kept = sorted(added[-window:])
    assert len(latency) == len(kept)
    expected = kept[max(math.ceil(share * len(kept)) - 1, 0)] if kept else 0.0
    assert latency.quantile(share) == expected


def test_threads_may_add_at_once() -> None:
    """What is forgotten is always what was added first."""
    latency = Latency(8)

    def add(first: int) -> None:
        for number in range(2000):
            latency.add(float((first + number * 7919) % 1000))
            latency.quantile(0.5)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert sorted(latency._aged) == latency._sorted
