"""The examples, as a user runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_example(*arguments: str) -> list[str]:
    """Run one that says nothing on stderr; returns its lines."""
    program = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert program.stderr == ""
    return program.stdout.splitlines()


def test_epochs_with_a_cache_are_those_without_one(tmp_path: Path) -> None:
    """Whatever the number of workers, in the first run with a cache and in the second."""
    example = ("examples/cached_encoder.py", "--images", "128")
    plain = [line.split("digest=")[1] for line in run_example(*example, "--no-cache")]
    assert len(set(plain)) == 3
    for hits, workers in ((8, "0"), (12, "1")):
        cached = run_example(*example, "--cache", str(tmp_path), "--workers", workers)
        assert [line.split("digest=")[1] for line in cached] == plain
        counts = dict(re.findall(r"(\w+)=(\d+)", cached[-1]))
        assert int(counts["hits"]) + int(counts["misses"]) == 12
        assert int(counts["hits"]) >= hits - 3  # the next epoch's first batches are drawn early
    assert int(counts["misses"]) == 0


def test_the_example_serves_its_second_epoch_from_memory(tmp_path: Path) -> None:
    """And leaves figures for TensorBoard where it is told to."""
    program = subprocess.run(
        [sys.executable, "-W", "error", "examples/ram_cache.py", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert program.stderr == ""
    assert re.search(r"epoch 1: 100% hits", program.stdout)
    assert re.search(r"items=400 bytes=\d+ hits=400", program.stdout)
    assert len(list(tmp_path.glob("events.*"))) == 1
