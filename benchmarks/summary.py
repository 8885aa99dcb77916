"""The comparison in a few lines: ``python -m benchmarks.summary RESULTS [--write]``.

``--write`` puts them into the README, and the whole results and the picture beside this file.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.documents import put
from benchmarks.harness import label, load_workload
from benchmarks.report import load, rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness import Outcome
    from benchmarks.report import Results, Row
    from benchmarks.workloads import Workload

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
MARK = "<!-- comparison: written by `python -m benchmarks.summary RESULTS --write` -->"
_PICTURE = "![The share of the limit that each loader reaches](benchmarks/results.png)"
_COSTS = ("cpu_us", "cpu_ms")


def lines(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line of the table for each of our ways to do a workload.

    Where it has several cases, the worst of each loader counts, unless they are there for slopes.
    """
    workload = load_workload(name)
    if workload.slopes:
        return []
    main = next(iter(workload.columns))
    found = [row for row in rows(workload, outcomes) if main in row.figures]
    others = [row for row in found if row.loader[:4] != "ours" and row.loader != workload.limit]
    less = workload.columns[main].ratio != "more"
    worst = _worst(others, main, less=less)
    best = min(worst, key=lambda row: _figure(row, main, less=less), default=None)
    ours = _worst([row for row in found if row.loader[:4] == "ours"], main, less=less)
    return [_line(name, main, row, best) for row in ours]


def _worst(found: Sequence[Row], main: str, *, less: bool) -> list[Row]:
    loaders = dict.fromkeys(row.loader for row in found)
    return [
        max(
            (row for row in found if row.loader == loader),
            key=lambda row: _figure(row, main, less=less),
        )
        for loader in loaders
    ]


def _figure(row: Row, main: str, *, less: bool) -> float:
    median = row.figures[main].median
    return median if less else -median


def _line(name: str, main: str, ours: Row, best: Row | None) -> str:
    workload = load_workload(name)
    column = workload.columns[main]
    cost = next((key for key in _COSTS if key in workload.columns), None)
    cells = [
        f"{name.replace('_', ' ')}, {column.heading}",
        label(workload, ours.loader),
        *_told(workload, main, ours),
        _cost(workload, cost, ours),
    ]
    if best is None:
        cells += ["", "", "", ""]
    else:
        cells += [
            label(workload, best.loader),
            *_told(workload, main, best),
            _cost(workload, cost, best),
        ]
    return f"| {' | '.join(cells)} |"


def _told(workload: Workload, main: str, row: Row) -> tuple[str, str]:
    column = workload.columns[main]
    figure = column.form.format(row.figures[main].median)
    ratio = row.ratios.get(main)
    return figure, "" if ratio is None else f"{ratio.median:.2f}"


def _cost(workload: Workload, cost: str | None, row: Row) -> str:
    if cost is None or cost not in row.figures:
        return ""
    return workload.columns[cost].form.format(row.figures[cost].median)


def summary(results: Results, about: dict[str, Any]) -> str:
    """Return the table, and what it was measured on."""
    head = (
        "| | | | of the limit | CPU | the best of the others | | of the limit | CPU |",
        "|---|---|---:|---:|---:|---|---:|---:|---:|",
    )
    body = [line for name, found in results.items() for line in lines(name, found)]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    measured = (
        f"{about['date']}, {about['cores']} cores, {about['system']}; {versions}. Medians of "
        f"{about['rounds']} rounds. All figures: [`RESULTS.md`](benchmarks/RESULTS.md)."
    )
    return "\n".join((*head, *body)) + f"\n\n{measured}"


def main(path: str, *options: str) -> None:
    results, about = load(Path(path))
    text = summary(results, about)
    print(text)
    if "--write" in options:
        shutil.copy(Path(path).with_suffix(".md"), HERE / "RESULTS.md")
        shutil.copy(Path(path).with_suffix(".png"), HERE / "results.png")
        put(README, MARK, _PICTURE, text)


if __name__ == "__main__":
    main(*sys.argv[1:])
