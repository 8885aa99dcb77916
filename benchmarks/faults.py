"""The same five faults through several loaders, and what becomes of the rows.

``python -m benchmarks faults`` runs the loaders that are installed, in ``.venv-bench`` if there
is one (``make bench-setup``). ``--write`` writes the table to FAULTS.md and to the README.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.documents import put
from benchmarks.peers import LOADERS, PATIENCE
from benchmarks.peers.enclosure import PATIENCE as NO_NEWS
from benchmarks.peers.enclosure import ROOT, SETTLE, Outcome, enclosed, private_mounts
from benchmarks.peers.faulty import FAULTS, ITEMS
from benchmarks.peers.verdicts import Verdict, judge, worst

if TYPE_CHECKING:
    from collections.abc import Sequence

REPETITIONS = 3
PAGE = Path(__file__).with_name("FAULTS.md")
README = ROOT / "README.md"
_MARK = "<!-- faults: written by `python -m benchmarks faults --write` -->"

_RULE = """\
Bold keeps the rule: every row arrives, or an error comes in a bounded time that says which item
is at fault (or which worker, where one is killed from outside), and the program can end. When
the program itself is killed, nothing is left {settle:.0f} s later."""

_HOW = """\
Each cell is the worst of {repetitions} programs. Each program reads one epoch of {items} items of
4 KiB and 2 ms, in batches of 8, with 2 workers. After an error it asks again, until there are
three errors in a row or a time-out. A worker or the program is killed from outside, after the
tenth batch. Item 203 is the one at fault; the exception's own text names it, and nothing else
does. A program without news for {no_news:.0f} s hangs. The seconds are the longest wait for a
batch after the first one, and in errors the wait for it. "Lost" rows never came; "only logged"
says that the program got no error, while there was a message on stderr. What is left is counted
as soon as it is nothing, or {settle:.0f} s after the program's end: processes, objects in a
`/dev/shm` that the program has to itself, and files in a `TMPDIR` of its own.

Settings: loaders that can be told how long to wait for a batch are told {patience} s (torch,
hydrax, SPDL). torch has a `collate_fn` that makes tensors of arrays and leaves the rest as it is;
Grain's `batch` has a `batch_fn` likewise, and `close()` is called. SPDL gets `max_failures=0`,
since by default it logs a failure and drops it; "subprocess" is `run_pipeline_in_subprocess`, by
way of `iterate_in_subprocess`, with 2 threads in it, so that its one worker is the process. The
process pool with `asyncio.gather` is no loader, but what one writes without one. The adapters are
the modules of [`peers/`](peers/)."""


@dataclass(frozen=True)
class Row:
    """A loader's cells, and what was measured."""

    loader: str
    versions: dict[str, str]
    cells: dict[str, Verdict]


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks faults")
    parser.add_argument("--write", action="store_true", help="write the table to the documents")
    parser.add_argument("--loader", action="append", choices=LOADERS, help="only this one")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    chosen = parser.parse_args(arguments)
    python = bench_python()
    rows = []
    for loader in chosen.loader or LOADERS:
        if installed(python, loader):
            rows.append(measure(python, loader, chosen.repetitions))
        else:
            print(f"{LOADERS[loader]}: not installed; `make bench-setup` does that")
    if chosen.write:
        if len(rows) < len(LOADERS):
            raise SystemExit("a part of the table is not written")
        write(page(python, rows, chosen.repetitions), table(rows))


def bench_python() -> str:
    """Return the Python that has the other loaders, or else this one."""
    other = ROOT / ".venv-bench" / "bin" / "python"
    return str(other) if other.exists() else sys.executable


def installed(python: str, loader: str) -> bool:
    """Tell whether a loader's adapter can be imported."""
    command = (python, "-c", f"import benchmarks.peers.{loader}")
    return subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


def measure(python: str, loader: str, repetitions: int = REPETITIONS) -> Row:
    """Run a loader with all faults."""
    versions: dict[str, str] = {}
    cells = {}
    for fault in FAULTS:
        verdicts = []
        for _ in range(repetitions):
            outcome = enclosed(python, loader, fault)
            versions |= versions_of(outcome)
            verdicts.append(judge(fault, outcome))
        cells[fault] = worst(verdicts)
        passed = sum(verdict.passed for verdict in verdicts)
        print(f"{loader:16}{fault:10} {passed}/{repetitions}  {cells[fault].text}", flush=True)
    return Row(loader, versions, cells)


def versions_of(outcome: Outcome) -> dict[str, str]:
    """Return the versions that a program says it has."""
    return outcome.journal[0]["versions"] if outcome.journal else {}


def table(rows: Sequence[Row]) -> str:
    """Return the table: a column for each fault."""
    lines = [["", *FAULTS.values()], ["---"] * (len(FAULTS) + 1)]
    for row in rows:
        texts = [f"**{c.text}**" if c.passed else c.text for c in row.cells.values()]
        lines.append([LOADERS[row.loader], *texts])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(python: str, rows: Sequence[Row], repetitions: int) -> str:
    """Return the page with the table and how it came about."""
    versions = functools.reduce(lambda one, other: one | other, (row.versions for row in rows))
    listed = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    command = (python, "-c", "import platform; print(platform.python_version())")
    cpython = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    measured = (
        f"Measured on {datetime.date.today()}: {os.cpu_count()} cores, {platform.system()} "
        f"{platform.release().split('-')[0]}, CPython {cpython}; {listed}."
    )
    if not private_mounts():
        measured += " `unshare -m` was not permitted: what others made in `/dev/shm` may count."
    how = _HOW.format(
        repetitions=repetitions, items=len(ITEMS), no_news=NO_NEWS, settle=SETTLE, patience=PATIENCE
    )
    parts = ("# Five faults", _rule(), table(rows), measured, how)
    again = "Again: `make bench-setup`, and then `make bench BENCH_ARGS='faults --write'`."
    return "\n\n".join((_MARK, *parts, again)) + "\n"


def _rule() -> str:
    return _RULE.format(settle=SETTLE)


def write(text: str, short: str) -> None:
    """Write the page, and put the table between the marks of the README."""
    PAGE.write_text(text)
    put(README, _MARK, _rule(), short)


if __name__ == "__main__":
    main(sys.argv[1:])
