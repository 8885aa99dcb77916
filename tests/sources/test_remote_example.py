"""The example of remote data, as a user runs it: in short, from both of its servers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "remote.py"
FIGURES = re.compile(
    r"objects=48 objects_per_s=\d+ in_flight=\d+ retries=\d+ p50_ms=[\d.]+ idle=[\d.]+% "
    r"bound_by=(fetch|load|place|consumer) accuracy=[01]\.\d+"
)


def run_example(*options: str) -> subprocess.CompletedProcess[str]:
    root = str(EXAMPLE.parents[1])
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.timeout(150)
@pytest.mark.parametrize(("server", "workers"), [((), "1"), (("--s3",), "0")], ids=["http", "s3"])
def test_it_trains_on_objects_and_ends_with_a_line_of_figures(
    server: tuple[str, ...], workers: str
) -> None:
    sizes = ("--items", "32", "--steps", "6", "--batch-size", "8", "--workers", workers)
    done = run_example(*server, *sizes)
    assert (done.returncode, done.stderr) == (0, "")
    first, last = done.stdout.splitlines()
    assert first.startswith("32 images at s3://" if server else "32 images at http://127.0.0.1:")
    assert FIGURES.fullmatch(last), last
