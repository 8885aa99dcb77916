"""Metrics: seconds, bytes and a rate, under the same tags whatever records them."""

from __future__ import annotations

import builtins
import importlib
import sys
from typing import TYPE_CHECKING, Any

import pytest
from providers import CONFIG, Provider
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event

from aioloader import DataCache
from aioloader.metrics import MetricsSink
from aioloader.metrics.tensorboard import TensorBoardSink

if TYPE_CHECKING:
    from pathlib import Path

FETCHING = ["data_cache/hit_rate", "data_cache/hit_seconds", "data_cache/wait_seconds"]
INSERTING = ["data_cache/load_seconds", "data_cache/bytes", "data_cache/items"]


class Recorded:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.figures: list[tuple[str, float, int]] = []

    def scalar(self, tag: str, value: float, step: int) -> None:
        self.figures.append((tag, value, step))

    def of(self, tag: str) -> list[tuple[float, int]]:
        return [(value, step) for name, value, step in self.figures if name == f"data_cache/{tag}"]


def two_epochs(cache: DataCache, rows: int) -> None:
    for _ in range(2):
        for index in range(rows):
            cache[index]
    cache.close()


def read_back(folder: Path) -> list[tuple[str, float, int]]:
    """Read the figures of all event files."""
    found = []
    for path in sorted(folder.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length, its checksum, the event, its checksum
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(v.tag, v.simple_value, event.step) for v in event.summary.value]
            at += 16 + length
    return found


def test_figures_come_every_so_many_rows() -> None:
    """Means over the rows since the last report, and the rest at the end."""
    sink = Recorded()
    assert isinstance(sink, MetricsSink)
    cache = DataCache(CONFIG, Provider(20), metrics=sink, logging_interval=8)
    two_epochs(cache, 20)
    assert sink.of("hit_rate") == [(0.0, 8), (0.0, 16), (0.5, 24), (1.0, 32), (1.0, 40)]
    assert [step for _, step in sink.of("wait_seconds")] == [8, 16, 24]
    assert [step for _, step in sink.of("hit_seconds")] == [24, 32, 40]
    assert [step for _, step in sink.of("load_seconds")] == [8, 16, 20]
    assert [value for value, _ in sink.of("items")] == [8, 16, 20]
    assert sink.of("bytes")[-1] == (cache._data_size_bytes, 20)
    assert {tag for tag, _, _ in sink.figures} == {*FETCHING, *INSERTING}


def test_times_are_seconds_by_one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that makes a step of a quarter with each look at it."""
    from aioloader._caches import loading

    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            self.now += 0.25
            return self.now

    monkeypatch.setattr(loading, "time", Clock())
    sink = Recorded()
    two_epochs(DataCache(CONFIG, Provider(3), metrics=sink), 3)
    assert sink.of("hit_seconds") == [(0.25, 6)]
    assert sink.of("load_seconds") == [(0.25, 3)]
    assert sink.of("wait_seconds") == [(0.75, 6)]  # with the load, and two looks for that


def test_a_sink_that_fails_is_not_used_again(caplog: Any) -> None:
    """And no fetch fails for its sake."""

    class Broken:
        calls = 0

        def scalar(self, tag: str, value: float, step: int) -> None:
            self.calls += 1
            raise OSError("disk full")

    sink = Broken()
    two_epochs(DataCache(CONFIG, Provider(5), metrics=sink, logging_interval=1), 5)
    assert sink.calls == 1
    assert "disk full" in caplog.text


@pytest.mark.parametrize("owned", [True, False])
def test_tensorboard_reads_what_was_written(tmp_path: Path, owned: bool) -> None:
    """The event files hold each tag with its values and steps; a writer of ours is closed."""
    target: Any = tmp_path if owned else SummaryWriter(str(tmp_path))
    with TensorBoardSink(target) as sink:
        assert isinstance(sink, MetricsSink)
        assert repr(sink) == f"<TensorBoardSink: {tmp_path}>"
        cache = DataCache(CONFIG, Provider(10), metrics=sink, logging_interval=10)
        two_epochs(cache, 10)
    if not owned:
        target.add_scalar("mine", 1.0, 1)
        target.close()
    figures = read_back(tmp_path)
    mine = set() if owned else {"mine"}
    assert {tag for tag, _, _ in figures} == {*FETCHING, *INSERTING} | mine
    rates = [(value, step) for tag, value, step in figures if tag == "data_cache/hit_rate"]
    assert rates == [(0.0, 10), (1.0, 20)]
    (nbytes,) = [value for tag, value, _ in figures if tag == "data_cache/bytes"]
    assert nbytes == cache._data_size_bytes
    seconds = [value for tag, value, _ in figures if tag.endswith("_seconds")]
    assert all(0 < value < 30 for value in seconds)


def test_without_tensorboardx_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is imported, by the name of the extra."""
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "tensorboardX":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.delitem(sys.modules, "aioloader.metrics.tensorboard")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"aioloader\[tensorboard\]"):
        importlib.import_module("aioloader.metrics.tensorboard")
