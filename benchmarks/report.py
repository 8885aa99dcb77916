"""Results as a table in Markdown and as a picture: ``python -m benchmarks.report RESULTS``.

Only the picture needs matplotlib.
"""

from __future__ import annotations

import importlib
import json
import math
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Outcome, label, load_workload, machine, versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.workloads import Column, Workload

_OURS, _OTHERS, _LIMIT = "#1b6ca8", "#b9bec4", "#d1495b"
_MOST_SHARE = 1.5  # beyond that a bar is cut, and its number tells
Results = dict[str, list[Outcome]]


@dataclass(frozen=True)
class Spread:
    """Some rounds' median, and the least and the most of them."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """A loader in a case: what was measured, compared with the limit round by round."""

    case: str
    loader: str
    figures: Mapping[str, Spread]
    ratios: Mapping[str, Spread]
    wrong: str


def rows(workload: Workload, outcomes: Sequence[Outcome]) -> list[Row]:
    """Return a row for each case and loader. One void run makes all of its loader's void."""
    found = []
    keys = dict.fromkeys((each.case, each.loader) for each in outcomes)
    limits = {(o.case, o.round): o.figures for o in outcomes if o.loader == workload.limit}
    order = list(workload.loaders)
    for case, loader in sorted(keys, key=lambda k: (_place(k[0], keys), order.index(k[1]))):
        runs = [each for each in outcomes if (each.case, each.loader) == (case, loader)]
        wrong = next((each.wrong for each in runs if each.wrong), "")
        figures, ratios = {}, {}
        for key, column in workload.columns.items():
            values = [each.figures[key] for each in runs if key in each.figures]
            if values and not wrong:
                figures[key] = Spread.of(values)
            compared = [
                ratio(column, each.figures[key], limits[case, each.round][key])
                for each in runs
                if key in each.figures and key in limits.get((case, each.round), {})
            ]
            if column.ratio and compared and not wrong:
                ratios[key] = Spread.of(compared)
        found.append(Row(case, loader, figures, ratios, wrong))
    return found


def _place(case: str, keys: Mapping[tuple[str, str], None]) -> int:
    return [each for each, _ in keys].index(case)


def ratio(column: Column, value: float, limit: float) -> float:
    """Compare a figure with the limit's of the same round."""
    if column.ratio == "above":
        return value - limit
    over, under = (limit, value) if column.ratio == "less" else (value, limit)
    return over / under if under else math.inf


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the straight line nearest to points, on logarithmic axes."""
    xs = [math.log(x) for x, _ in points]
    ys = [math.log(max(y, 1e-9)) for _, y in points]
    middle, level = statistics.mean(xs), statistics.mean(ys)
    across = sum((x - middle) ** 2 for x in xs)
    return sum((x - middle) * (y - level) for x, y in zip(xs, ys, strict=True)) / across


def slopes(workload: Workload, found: Sequence[Row]) -> list[str]:
    """Return sentences on how figures grow with the cases."""
    told = []
    for loader in dict.fromkeys(row.loader for row in found):
        rows = [row for row in found if row.loader == loader]
        parts = _slopes(workload, rows)
        if parts:
            told.append(f"Slopes of {label(workload, loader)}: {'; '.join(parts)}.")
        least = workload.slopes_from
        if least and (parts := _slopes(workload, [r for r in rows if float(r.case) >= least])):
            told.append(f"From {least} on: {'; '.join(parts)}.")
    return told


def _slopes(workload: Workload, rows: Sequence[Row]) -> list[str]:
    parts = []
    for key in workload.slopes:
        points = [(float(row.case), row.figures[key].median) for row in rows if key in row.figures]
        if len(points) > 1:
            parts.append(f"{workload.columns[key].heading} {slope(points):+.3f}")
    return parts


def table(name: str, outcomes: Sequence[Outcome]) -> str:
    """Return a workload's table."""
    workload = load_workload(name)
    found = rows(workload, outcomes)
    cases = len({row.case for row in found}) > 1
    heads = ["", *(["case"] if cases else []), *_heads(workload)]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for row in found:
        head = label(workload, row.loader)
        cells = [f"**{head}**" if row.loader.startswith("ours") else head]
        cells += [row.case] if cases else []
        if row.wrong:
            cells.append(f"void: {row.wrong}".replace("|", "/"))
            cells += [""] * (len(heads) - len(cells))
        else:
            cells += _cells(workload, row)
        lines.append(cells)
    parts = [f"### {workload.title}"]
    if workload.reach:
        parts.append(f"To reach: {workload.reach}.")
    parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts + slopes(workload, found))


_RATIO_HEADS = {
    "more": "share of the limit",
    "less": "share of the limit",
    "cost": "x the limit's",
    "above": "above the limit",
}


def _heads(workload: Workload) -> list[str]:
    heads = []
    for column in workload.columns.values():
        heads.append(column.heading)
        if column.ratio:
            heads.append(_RATIO_HEADS[column.ratio])
    return heads


def _cells(workload: Workload, row: Row) -> list[str]:
    cells = []
    for key, column in workload.columns.items():
        seen = row.figures.get(key)
        cells.append(column.form.format(seen.median) if seen else "")
        if column.ratio:
            spread = row.ratios.get(key)
            form = "{:.1f}" if column.ratio == "above" else "{:.2f}"
            cells.append("")
            if spread and row.loader != workload.limit:
                cells[-1] = form.format(spread.median)
                cells[-1] += f" ({form.format(spread.least)} to {form.format(spread.most)})"
    return cells


def page(results: Results, about: Mapping[str, Any]) -> str:
    """Return all tables, and what they were measured on."""
    listed = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    measured = (
        f"Measured on {about['date']}: {about['cores']} cores, {about['system']}; {listed}. "
        f"Rounds: {about['rounds']}. Medians, and in brackets the least and the most of the "
        "rounds; each share is of the limit in the same round."
    )
    tables = [table(name, outcomes) for name, outcomes in results.items()]
    return "\n\n".join(["# The comparison", measured, *tables]) + "\n"


def draw(results: Results, path: Path, about: Mapping[str, Any]) -> bool:
    """Draw shares of the limit, a panel for each workload; returns whether that was possible."""
    try:
        figure_module = importlib.import_module("matplotlib.figure")
    except ImportError:
        return False
    panels = [(name, found) for name in results if (found := _bars(name, results[name]))]
    if not panels:
        return False
    height = sum(len(found) for _, found in panels) * 0.26 + len(panels) * 0.75 + 0.6
    figure = figure_module.Figure(figsize=(9, height), layout="constrained")
    sizes = [len(found) + 1 for _, found in panels]
    axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=sizes, squeeze=False)
    for axis, (name, found) in zip(axes[:, 0], panels, strict=True):
        _panel(axis, load_workload(name), found)
    axes[-1, 0].set_xlabel("share of the limit: the median of the rounds, the least and the most")
    figure.suptitle(f"{about['cores']} cores, {about['date']}", fontsize=9, x=0.99, ha="right")
    figure.savefig(path, dpi=130)
    return True


def _bars(name: str, outcomes: Sequence[Outcome]) -> list[tuple[str, Spread, bool]]:
    """Return labels, shares and whether they are ours, the best first."""
    workload = load_workload(name)
    main = next(iter(workload.columns))
    if workload.columns[main].ratio not in ("more", "less"):
        return []
    bars = [
        (label(workload, row.loader).replace("`", ""), row.ratios[main], row.loader[:4] == "ours")
        for row in rows(workload, outcomes)
        if main in row.ratios and row.loader != workload.limit
    ]
    return sorted(bars, key=lambda bar: -bar[1].median)


def _panel(axis: Any, workload: Workload, bars: Sequence[tuple[str, Spread, bool]]) -> None:
    for place, (_, share, ours) in enumerate(bars):
        shown = min(share.median, _MOST_SHARE)
        axis.barh(place, shown, color=_OURS if ours else _OTHERS, height=0.72)
        ends = [min(share.least, _MOST_SHARE), min(share.most, _MOST_SHARE)]
        axis.plot(ends, [place, place], color="black", linewidth=1)
        axis.text(max(shown, ends[1]) + 0.01, place, f"{share.median:.2f}", va="center", fontsize=7)
    axis.axvline(1, color=_LIMIT, linewidth=1)
    axis.set_yticks(range(len(bars)), [name for name, _, _ in bars], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, _MOST_SHARE + 0.1)
    axis.set_title(
        f"{workload.title}; 1 is {label(workload, workload.limit)}", fontsize=9, loc="left"
    )
    axis.spines[["top", "right"]].set_visible(False)


def save(results: Results, folder: Path, rounds: str) -> None:
    """Write the results as JSON and as Markdown; the picture is `main`'s."""
    everything = [outcome for outcomes in results.values() for outcome in outcomes]
    about = {**machine(), "rounds": rounds, "versions": versions(everything)}
    plain = {name: [asdict(each) for each in outcomes] for name, outcomes in results.items()}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": about, "results": plain}, indent=1)
    (folder / "results.json").write_text(text + "\n")
    (folder / "results.md").write_text(page(results, about))


def load(path: Path) -> tuple[Results, dict[str, Any]]:
    """Return what was saved."""
    saved = json.loads(path.read_text())
    plain = saved["results"].items()
    return {name: [Outcome(**each) for each in outcomes] for name, outcomes in plain}, saved[
        "about"
    ]


def main(path: str) -> None:
    results, about = load(Path(path))
    Path(path).with_suffix(".md").write_text(page(results, about))
    picture = Path(path).with_suffix(".png")
    drawn = draw(results, picture, about)
    print(f"drawn: {picture}" if drawn else "no picture: that needs matplotlib, and shares")


if __name__ == "__main__":
    main(*sys.argv[1:])
