"""The comparison with other loaders: ``python -m benchmarks [--full] [WORKLOAD ...]``."""

from __future__ import annotations

import argparse
import compileall
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.faults import bench_python
from benchmarks.harness import ROOT, Form, compare
from benchmarks.loaders import LOADERS
from benchmarks.report import Results, save, table
from benchmarks.workloads import NAMES

if TYPE_CHECKING:
    from collections.abc import Sequence

OUTPUT = ROOT / "build" / "benchmarks"


def main(names: Sequence[str], arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--full", action="store_true", help="all loaders, at least five rounds")
    parser.add_argument("--loader", action="append", choices=tuple(LOADERS), help="only this one")
    parser.add_argument("--rounds", type=int, default=0, help="so many rounds")
    parser.add_argument("--scale", type=float, default=0.0, help="runs so long; 1 is in full")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"a folder; {OUTPUT}")
    asked = parser.parse_args(arguments)
    form = Form(not asked.full, tuple(asked.loader or ()), asked.rounds, asked.scale)
    python = bench_python()
    for package in ("aioloader", "benchmarks"):  # what pip has installed is compiled, too
        compileall.compile_dir(ROOT / package, quiet=1)
    results: Results = {}
    told = str(asked.rounds or ("5, teardown 3" if asked.full else "3, teardown 2"))
    for name in names or NAMES:
        started = time.perf_counter()
        print(f"== {name}", flush=True)
        results[name] = compare(name, form, python, lambda text: print(text, flush=True))
        print(f"\n{table(name, results[name])}\n\n   ({time.perf_counter() - started:.0f} s)")
        save(results, asked.output, told)  # what there is, if somebody stops it
    command = (python, "-m", "benchmarks.report", str(asked.output / "results.json"))
    subprocess.run(command, cwd=ROOT, check=False)
