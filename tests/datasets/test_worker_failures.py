"""What goes wrong in workers of a dataset: it is told at its element, and nothing else is lost."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from typing import Any

import pytest
from crews import all_of, manned
from support import is_alive

from aioloader import (
    IterDataset,
    LoadError,
    MapDataset,
    MultiprocessingOptions,
    WithOptionsIterDataset,
    is_worker,
)
from aioloader._datasets.iterators import DatasetIterator
from aioloader._datasets.options import DatasetOptions

COUNTS = (1, 2, 3)


def me(element: Any) -> Any:
    """Return an element, and who made it."""
    return element, os.getpid(), is_worker()


def fails_at_5(element: Any) -> Any:
    if element == 5:
        raise ValueError("five")
    return element


@pytest.mark.parametrize("workers", COUNTS)
def test_a_dead_worker_is_replaced_and_nothing_is_lost(workers: int) -> None:
    dataset = MapDataset.range(400).map(me).to_iter_dataset()
    with iter(manned(dataset, workers)) as iterator:
        got, killed = [], 0
        for element, pid, _ in iterator:
            got.append(element)
            if len(got) in (20, 250) and is_alive(pid):
                os.kill(pid, signal.SIGKILL)
                killed += 1
    assert got == list(range(400))
    assert killed


def test_an_element_that_ends_workers_is_named_and_passed_over() -> None:
    """It is found among those that it was sent with."""

    def deadly(element: int) -> int:
        if element == 37:
            os._exit(3)
        return element

    with iter(manned(MapDataset.range(60).map(deadly).to_iter_dataset())) as iterator:
        assert [next(iterator) for _ in range(37)] == list(range(37))
        with pytest.raises(LoadError, match=r"element 37 .*exited with code 3"):
            next(iterator)
        assert iterator.get_state() == {"next_index": 38}
        assert list(iterator) == list(range(38, 60))


def test_an_exception_comes_at_its_element_with_its_traceback() -> None:
    with iter(manned(MapDataset.range(9).map(fails_at_5).to_iter_dataset())) as iterator:
        assert [next(iterator) for _ in range(5)] == list(range(5))
        with pytest.raises(ValueError, match="five") as raised:
            next(iterator)
        assert "in a worker" in raised.value.__notes__[-1]
        assert 'raise ValueError("five")' in raised.value.__notes__[-1]
        assert list(iterator) == [6, 7, 8]


class Stubborn(Exception):
    """Cannot be unpickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_exceptions_that_do_not_travel_are_told_of() -> None:
    def fail(element: int) -> int:
        if element == 2:
            raise Stubborn(1, 2)
        if element == 4:
            raise SystemExit(3)
        return element

    with iter(manned(MapDataset.range(6).map(fail).to_iter_dataset())) as iterator:
        got = all_of(iterator)
    assert got[:2] + got[3:4] + got[5:] == [0, 1, 3, 5]
    assert got[2].startswith("LoadError: ")
    assert "Stubborn: 1 and 2" in got[2]
    assert "SystemExit: 3" in got[4]


class Unreadable:
    """Pickles, and does not unpickle."""

    def __reduce__(self) -> Any:
        return _unreadable, ()


def _unreadable() -> None:
    raise ValueError("cannot be read")


def test_elements_that_do_not_travel_are_told_of() -> None:
    def odd(element: int) -> Any:
        return {3: threading.Lock(), 5: Unreadable()}.get(element, element)

    with iter(manned(MapDataset.range(8).map(odd).to_iter_dataset())) as iterator:
        got = all_of(iterator)
    assert got[:3] + got[4:5] + got[6:] == [0, 1, 2, 4, 6, 7]
    assert "cannot pickle '_thread.lock' object" in got[3]
    assert got[5] == "ValueError: cannot be read"


def test_a_stage_that_does_not_travel_is_named() -> None:
    """Once it is asked for an element; and it can be asked again."""
    lock = threading.Lock()
    dataset = MapDataset.range(8).map(lambda x: x).map(lambda x: (x, lock)).map(str)
    iterator = iter(manned(dataset.to_iter_dataset()))
    for _ in range(2):
        with pytest.raises(TypeError, match="cannot be sent to worker processes") as raised:
            next(iterator)
        assert any("map(" in note for note in raised.value.__notes__)
    iterator.close()


def test_an_init_function_that_fails_is_told_of() -> None:
    def begin(index: int, count: int) -> None:
        raise RuntimeError("no licence")

    dataset = MapDataset.range(8).to_iter_dataset()
    dataset = dataset.mp_prefetch(MultiprocessingOptions(num_workers=2), begin)
    with iter(dataset) as iterator, pytest.raises(LoadError, match="no licence"):
        next(iterator)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_workers": -1}, "num_workers"),
        ({"num_workers": 1, "per_worker_buffer_size": 0}, "per_worker_buffer_size"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        MultiprocessingOptions(**options)
    with pytest.raises(TypeError, match="worker_init_fn"):
        MapDataset.range(3).to_iter_dataset().mp_prefetch(None, 3)  # type: ignore[arg-type]


def test_positions_outside_are_refused() -> None:
    with iter(manned(MapDataset.range(3).to_iter_dataset())) as iterator:
        with pytest.raises(IndexError, match="next_index=4"):
            iterator.set_state({"next_index": 4})
        assert next(iterator) == 0
        iterator.set_state({"next_index": 0})
        assert list(iterator) == [0, 1, 2]
        iterator.set_state({"next_index": 1})
        assert list(iterator) == [1, 2]


def test_positions_may_change_in_the_midst_of_what_has_come() -> None:
    with iter(manned(MapDataset.range(300).to_iter_dataset())) as iterator:
        for length in range(2, 40):
            iterator.set_state({"next_index": length})
            assert list(itertools.islice(iterator, length)) == list(range(length, 2 * length))


def test_iterables_without_indices_are_read_in_the_program() -> None:
    """One worker makes no difference to them, several have nothing to share."""
    dataset = IterDataset.source(range(5)).map(lambda x: -x)
    assert list(manned(dataset, 1)) == [0, -1, -2, -3, -4]
    with pytest.raises(ValueError, match="Cannot slice `IterDataset` source"):
        list(manned(dataset, 2))


class Doubled(IterDataset[int]):
    """A stage of one's own."""

    def __iter__(self) -> DatasetIterator[int]:
        return DoublingIterator(iter(self._parent))


class DoublingIterator(DatasetIterator[int]):
    def __next__(self) -> int:
        return 2 * next(self._parent)

    def get_state(self) -> dict[str, Any]:
        return self._parent.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state)


def test_stages_of_ones_own_stay_in_the_program() -> None:
    dataset = Doubled(MapDataset.range(8).map(me).map(lambda e: e[0] * e[2]).to_iter_dataset())
    with iter(manned(dataset)) as iterator:
        assert list(iterator) == [2 * k for k in range(8)]


def test_filters_warn_as_without_workers(caplog: pytest.LogCaptureFixture) -> None:
    rare = MapDataset.range(5000).to_iter_dataset().filter(lambda x: x == 4500 or x < 10)
    with caplog.at_level(logging.WARNING, "aioloader"), iter(manned(rare)) as iterator:
        assert list(iterator) == [*range(10), 4500]
    assert sum("removed" in record.message for record in caplog.records) == 1
    strict = WithOptionsIterDataset(rare, DatasetOptions(filter_raise_threshold_ratio=0.95))
    for workers in (0, 2):
        with iter(manned(strict, workers)) as iterator:
            got = all_of(iterator)
        assert len(got) == 10 + 5 + 1
        assert "filter_raise_threshold_ratio" in got[10]
