"""Filters that remove most of their elements are told of, or refused."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from aioloader import DatasetOptions, IterDataset, MapDataset, WithOptionsIterDataset
from aioloader._datasets import filtering

LENGTH = 3000


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filtering, "_warned_at", {})


def every(n: int) -> Any:
    """Return a predicate that is true for every n-th."""

    def keep(x: int) -> bool:
        return x % n == 0

    return keep


async def _keep_few(x: int) -> bool:
    return x % 100 == 0


def _filtered(kind: str, keep: Any) -> IterDataset[int]:
    numbers = MapDataset.range(LENGTH)
    if kind == "map":
        return numbers.filter(keep).to_iter_dataset()
    return numbers.to_iter_dataset().filter(keep)


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "aioloader"]


@pytest.mark.parametrize("kind", ["map", "iter"])
@pytest.mark.parametrize(("n", "warns"), [(10, True), (9, False)])
def test_ninety_per_cent_are_warned_of(
    caplog: pytest.LogCaptureFixture, kind: str, n: int, warns: bool
) -> None:
    """Once, with the filter's name or the dataset's, and the share."""
    list(_filtered(kind, every(n)))
    said = _said(caplog)
    assert len(said) == warns
    if warns:
        assert "90.0%" in said[0]
        assert "keep" in said[0]
    assert all(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize("kind", ["map", "iter"])
def test_coroutine_filters_are_counted_as_well(caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """However one iterates."""

    async def run() -> None:
        async for _ in _filtered(kind, _keep_few):
            pass

    asyncio.run(run())
    assert len(_said(caplog)) == 1


def test_it_is_said_at_most_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each filter; the windows are of 1000 elements and begin anew in each iterator."""
    now = 1000.0
    monkeypatch.setattr(filtering.time, "monotonic", lambda: now)
    dataset = _filtered("iter", every(100))
    iterator = iter(dataset)
    for _ in range(10):
        next(iterator)
    assert _said(caplog) == []
    next(iterator)
    assert len(_said(caplog)) == 1
    list(dataset)
    assert len(_said(caplog)) == 1
    now += 61
    list(dataset)
    assert len(_said(caplog)) == 2


@pytest.mark.parametrize("kind", ["map", "iter"])
def test_a_threshold_can_be_an_error(kind: str) -> None:
    """It comes behind the 1000th element, and iteration goes on after it."""
    options = DatasetOptions(filter_raise_threshold_ratio=0.99)
    dataset = WithOptionsIterDataset(_filtered(kind, every(100)), options)
    iterator = iter(dataset)
    assert [next(iterator) for _ in range(10)] == list(range(0, 1000, 100))
    with pytest.raises(ValueError, match=r"99\.0%"):
        next(iterator)
    assert next(iterator) == 1000
    mild = WithOptionsIterDataset(_filtered(kind, every(50)), options)
    assert len(list(mild)) == LENGTH // 50


@pytest.mark.parametrize("off", [None, 0, 0.0])
def test_thresholds_can_be_turned_off(caplog: pytest.LogCaptureFixture, off: float | None) -> None:
    """By None or 0."""
    options = DatasetOptions(filter_warn_threshold_ratio=off, filter_raise_threshold_ratio=off)
    list(WithOptionsIterDataset(_filtered("iter", every(500)), options))
    assert _said(caplog) == []


def test_options_hold_before_and_after_them_and_the_last_ones_win() -> None:
    """Each threshold by itself."""
    strict = DatasetOptions(filter_raise_threshold_ratio=0.5)
    lenient = DatasetOptions(filter_raise_threshold_ratio=1.0)
    silent = DatasetOptions(filter_warn_threshold_ratio=None)
    numbers = MapDataset.range(LENGTH).to_iter_dataset()

    def strict_before(dataset: IterDataset[int]) -> IterDataset[int]:
        return WithOptionsIterDataset(dataset, strict).filter(every(10))

    with pytest.raises(ValueError, match="removed"):
        list(strict_before(numbers))
    with pytest.raises(ValueError, match="removed"):
        list(numbers.filter(every(10)).pipe(WithOptionsIterDataset, strict))
    with pytest.raises(ValueError, match="removed"):
        list(strict_before(numbers).pipe(WithOptionsIterDataset, silent))
    with pytest.raises(ValueError, match="removed"):
        list(strict_before(numbers.pipe(WithOptionsIterDataset, lenient)))
    assert len(list(strict_before(numbers).pipe(WithOptionsIterDataset, lenient))) == 300


def test_options_hold_after_a_state_was_set() -> None:
    """Where an iterator begins anew, beneath coroutine functions."""

    async def same(x: int) -> int:
        return x

    strict = DatasetOptions(filter_raise_threshold_ratio=0.5)
    dataset = MapDataset.range(LENGTH).to_iter_dataset().filter(every(10)).map(same)
    iterator = iter(WithOptionsIterDataset(dataset, strict))
    state = iterator.get_state()
    assert next(iterator) == 0
    iterator.set_state(state)
    with pytest.raises(ValueError, match="removed"):
        list(iterator)


def test_allowed_nones_do_not_count(caplog: pytest.LogCaptureFixture) -> None:
    """They are no removals."""
    sparse = MapDataset.range(LENGTH).filter(every(100)).to_iter_dataset(allow_nones=True)
    assert len(list(sparse)) == LENGTH
    assert _said(caplog) == []
