"""The comparison with other loaders: who loses items is void, and ratios are of one round."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks import harness, loaders
from benchmarks.consumer import ENDS, Consumer
from benchmarks.harness import Form, Outcome, compare, execute, load_workload, turns
from benchmarks.loaders import Work
from benchmarks.processes import below
from benchmarks.program import Setting
from benchmarks.report import page, ratio, rows, slope, table
from benchmarks.workloads import NAMES, Column
from benchmarks.workloads.tiny import load

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH, BATCHES = 4, 8
WORK = Work(range(BATCH * BATCHES), {"x": ((8,), "int32")}, load, BATCH)
Batches = list[dict[str, np.ndarray]]


def test_a_small_run_of_ours_and_the_limit() -> None:
    """Both bring all items, each in a process of its own, and one is compared with the other."""
    form = Form(loaders=("ours",), rounds=1, scale=0.03)
    outcomes = compare("tiny", form, sys.executable, lambda text: None)
    assert [(each.loader, each.wrong) for each in outcomes] == [("pair", ""), ("ours", "")]
    limit, ours = (each.figures for each in outcomes)
    assert ours["cpu_us"] >= 0
    assert ours["pss_mib"] > 0
    assert ours["first_s"] > 0
    found = rows(load_workload("tiny"), outcomes)[1]
    assert found.ratios["rate"].median == ours["rate"] / limit["rate"]


def test_a_run_that_fails_is_void_and_says_why() -> None:
    """A loader that is not there has no figures, and its message is kept."""
    assert "nobody" in execute(sys.executable, "tiny", Setting("nobody"))["wrong"]


def test_a_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that outlives its program is ended before the next one begins."""
    monkeypatch.setattr(harness, "_TIDYING_SECONDS", 0.1)
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\nsleep 60 & echo $! > " + str(tmp_path / "pid") + "\n")
    stand_in.chmod(0o755)
    assert execute(str(stand_in), "tiny", Setting("ours"))["wrong"] == "no figures"
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()


def test_processes_are_found_while_others_end() -> None:
    """Those that come and go while a tree is walked are no error, and hide nobody that stays."""
    shell = "sleep 60 & while :; do (true; true) | (true; true); done"
    with subprocess.Popen(["sh", "-c", shell], start_new_session=True) as program:
        try:
            seen = [below(program.pid) for _ in range(1000)]
        finally:
            os.killpg(program.pid, signal.SIGKILL)
    assert any(len(each) > 1 for each in seen)
    assert len(set.intersection(*map(set, filter(None, seen)))) == 1  # the one that sleeps
    assert below(program.pid) == []


def batches() -> Batches:
    """Return an epoch as it should be."""
    return [WORK.batch(items) for items in WORK.cuts]


def verdict(given: Batches, work: Work = WORK) -> str:
    """Return what a consumer says of batches."""
    consumer = Consumer(work, ENDS)
    for batch in given:
        consumer.take(batch)
    return consumer.verdict()


def test_a_whole_epoch_is_right() -> None:
    """Nothing is wrong with all items in order, and in another one where that is allowed."""
    assert verdict(batches()) == ""
    assert verdict(batches()[::-1], replace(WORK, ordered=False)) == ""


def lost(given: Batches) -> Batches:
    return given[:-1]


def exchanged(given: Batches) -> Batches:
    return [given[1], given[0], *given[2:]]


def twice(given: Batches) -> Batches:
    return [given[1], *given[1:]]


def too_many(given: Batches) -> Batches:
    return [*given, given[0]]


def torn(given: Batches) -> Batches:
    given[3]["x"][2, -1] = 77
    return given


def damaged(given: Batches) -> Batches:
    given[-1]["x"][2, 4] = 77
    return given


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lost, "4 of 32 rows lost"),
        (exchanged, "other rows"),
        (twice, "other rows"),
        (too_many, "more than 32"),
        (torn, "torn"),
        (damaged, "other bytes in 'x'"),
    ],
)
def test_what_is_not_right_is_void(spoil: Callable[[Batches], Batches], said: str) -> None:
    """Lost, exchanged, doubled, torn and damaged rows are found, whoever is fast."""
    assert said in verdict(spoil(batches()))


@pytest.mark.parametrize("spoil", [lost, twice, too_many])
def test_no_order_is_no_excuse(spoil: Callable[[Batches], Batches]) -> None:
    """Batches may come as they become ready, but each of them once."""
    assert verdict(spoil(batches()), replace(WORK, ordered=False))


def shuffled(count: int, limit: int) -> tuple[Work, list[np.ndarray]]:
    """Return the work and the items of epochs in other orders."""
    work = replace(WORK, items=range(count), shuffled=True, limit=limit)
    epochs = [np.random.default_rng(seed).permutation(count) for seed in range(3)]
    return work, np.split(np.concatenate(epochs)[: limit * BATCH], limit)


def test_shuffled_epochs_have_each_row_once() -> None:
    """So has an epoch that is cut off; a row of another epoch in its place is found."""
    work, cuts = shuffled(16, 10)
    assert verdict([work.batch(items.tolist()) for items in cuts], work) == ""
    cuts[5][0] = cuts[6][1]
    assert "other rows" in verdict([work.batch(items.tolist()) for items in cuts], work)


def outcome(number: int, loader: str, **figures: Any) -> Outcome:
    """Return a run's outcome."""
    return Outcome(number, "", loader, {"wrong": "", **figures})


ROUNDS = [
    *(outcome(n, "pair", rate=rate, cpu_us=1.0) for n, rate in enumerate((100.0, 50.0, 200.0))),
    *(outcome(n, "ours", rate=rate, cpu_us=1.5) for n, rate in enumerate((90.0, 40.0, 190.0))),
]


def test_ratios_are_of_one_round() -> None:
    """A slow round is slow for the limit, too; medians are of ratios, and not the other way."""
    _, ours = rows(load_workload("tiny"), ROUNDS)
    spread = ours.ratios["rate"]
    assert (spread.least, spread.median, spread.most) == (0.8, 0.9, 0.95)
    assert ours.ratios["cpu_us"].median == 1.5
    assert ours.figures["rate"].median == 90.0
    assert "| **aioloader** | 90 | 0.90 (0.80 to 0.95) |" in table("tiny", ROUNDS)


def test_one_void_round_makes_a_loader_void() -> None:
    """Whoever loses items once has no figures at all, and the table says what it did."""
    spoilt = [*ROUNDS, outcome(3, "ours", rate=1e9)]
    spoilt[-1].figures["wrong"] = "4 of 32 rows lost"
    _, ours = rows(load_workload("tiny"), spoilt)
    assert not ours.figures
    assert not ours.ratios
    assert "void: 4 of 32 rows lost" in table("tiny", spoilt)


@pytest.mark.parametrize(
    ("kind", "expected"), [("more", 0.5), ("less", 2.0), ("cost", 0.5), ("above", -10.0)]
)
def test_each_kind_of_ratio(kind: str, expected: float) -> None:
    """Where less is better, less is the larger share."""
    assert ratio(Column("", ratio=kind), 10.0, 20.0) == expected


def test_slopes_are_on_logarithmic_axes() -> None:
    """What does not grow has none, and what grows as fast as its cause has one."""
    assert slope([(1e3, 7.0), (1e6, 7.0), (1e9, 7.0)]) == pytest.approx(0)
    assert slope([(1e3, 2e3), (1e6, 2e6), (1e9, 2e9)]) == pytest.approx(1)


def test_slopes_are_told_of_all_cases_and_of_the_larger_ones() -> None:
    """One batch ahead is another matter than four, and nothing is left out for that."""
    times = {"1": 1.0, "4": 2.0, "16": 2.0, "64": 2.0}
    found = [Outcome(0, case, "ours", {"wrong": "", "setup_ms": ms}) for case, ms in times.items()]
    told = table("growth_depth", found)
    assert "Slopes of aioloader: set-up, ms +0.150." in told
    assert "From 4 on: set-up, ms +0.000." in told


def test_rounds_are_interleaved() -> None:
    """Each round has everybody once, and begins with another."""
    workload = load_workload("tiny")
    seen = [loader for _, _, loader in turns(workload, Form(rounds=2))]
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert sorted(first) == sorted(second) == sorted(workload.loaders)
    assert first[0] != second[0]


@pytest.mark.parametrize("name", NAMES)
def test_each_workload_is_whole(name: str) -> None:
    """Its loaders have adapters or a way of its own, and its limit takes part in each form."""
    workload = load_workload(name)
    folder = Path(loaders.__file__).parent
    for loader in {*workload.loaders, *workload.short} - set(workload.labels) - {"mapped"}:
        assert (folder / f"{loader}.py").exists()
    assert set(workload.short) <= set(workload.loaders)
    for form in (Form(), Form(short=True), Form(loaders=("ours",))):
        assert not workload.limit or form.chosen(workload)[0] == workload.limit
        assert "ours" in form.chosen(workload)


def test_the_page_names_what_was_measured_on() -> None:
    """Figures without a date, a machine and versions say nothing."""
    about = {
        "date": "2026-01-02",
        "cores": 2,
        "system": "Linux 6",
        "rounds": "3",
        "versions": {"a": "1.0"},
    }
    text = page({"tiny": ROUNDS}, about)
    assert "Measured on 2026-01-02: 2 cores, Linux 6; a 1.0." in text
    assert text.count("###") == 1
