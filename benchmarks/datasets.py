"""Datasets: by workers, by index and by iteration, and from a server, beside Grain."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from benchmarks.faults import bench_python
from benchmarks.peers.enclosure import ROOT

BESIDE_GRAIN = ("dataset_workers", "dataset_costs")


def main() -> None:
    python = sys.executable if importlib.util.find_spec("grain") else bench_python()
    for part in BESIDE_GRAIN:
        run(python, part)
    run(sys.executable, "dataset_remote")  # for which the client has to be installed here


def run(python: str, part: str) -> None:
    """Run one of the files, which print their figures."""
    subprocess.run((python, "-m", f"benchmarks.{part}"), cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
