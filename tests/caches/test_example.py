"""The example, as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


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
