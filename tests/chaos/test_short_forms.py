"""The long runs in short: a few cells, seeds, waits and rounds of each."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import cloudpickle
import pytest

from aioloader._executors.forkserver import server
from chaos import cancellation, consuming, matrix, random_runs, recovery, soak

if TYPE_CHECKING:
    from collections.abc import Iterator

STRIDE = 9


@pytest.fixture(scope="module", autouse=True)
def _what_workers_run_travels_by_value() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(consuming)
    with server.use():  # it takes most of the time in which a loader starts
        yield
    cloudpickle.unregister_pickle_by_value(consuming)


@pytest.fixture(scope="module")
def clean_digests() -> list[str]:
    """What a run without faults delivers."""
    return matrix.clean_digests()


@pytest.mark.parametrize("number", range(0, len(matrix.CELLS), STRIDE))
def test_every_fault_ends_in_all_rows_or_in_the_right_error(
    number: int, clean_digests: list[str]
) -> None:
    """One cell in nine of the matrix; they differ in fault, point and executor."""
    cell = matrix.CELLS[number]
    outcome, _ = matrix.run_cell(cell, clean_digests, ("asyncio", "uvloop")[number % 2])
    assert not outcome.startswith("WRONG"), f"{cell}: {outcome}"


@pytest.mark.parametrize("seed", range(5000, 5012))
def test_random_faults_in_random_configurations_lose_nothing(seed: int) -> None:
    assert random_runs.run_one(seed, random_runs.Tally()) == ""


@pytest.mark.parametrize("way", list(cancellation.WAYS))
@pytest.mark.parametrize("kind", list(cancellation.KINDS))
def test_a_cancellation_at_any_wait_loses_and_leaves_nothing(kind: str, way: str) -> None:
    """Some waits of an epoch on one loop, others on the other."""
    every, second = (1, 1) if way == "each __anext__" else (8, 3)
    assert cancellation.sweep("asyncio", kind, way, every=every, first=1) > 0
    assert cancellation.sweep("uvloop", kind, way, every=every, first=second) > 0


def test_an_epoch_survives_a_worker_killed_again_and_again() -> None:
    clean, _, _ = asyncio.run(recovery.run(300, kill=False))
    killed, gaps, deaths = asyncio.run(recovery.run(300, kill=True))
    assert killed == clean
    assert deaths >= len(gaps) - 1 == 5  # the last is killed with the epoch's last batch


def test_programs_that_share_a_cache_may_be_killed() -> None:
    """In programs that have not started JAX, since they fork."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "chaos", "sharing", "--seconds", "5"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_nothing_grows_from_loader_to_loader() -> None:
    """What is counted, that is: memory takes hours to tell apart from noise."""
    rounds = [counts for _, counts in asyncio.run(soak.soak(0, batches=20))]
    for name in ("descriptors", "tasks", "threads", "shared_maps"):
        assert rounds[-1][name] <= rounds[1][name]
