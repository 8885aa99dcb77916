"""The command ``aioloader cache``: what lies in a cache, whether it is whole, what may go."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import msgspec

from aioloader._caches.directory import NotPlain
from aioloader._caches.identity import show
from aioloader._caches.survey import Found, GroupSurvey, groups_in
from aioloader._caches.writing import sweep

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

__all__ = ["add_parser", "run"]

_BAR = 24
_STEP_SECONDS = 0.1

_HELP = {
    "info": "say what lies in a cache, without reading it",
    "verify": "read every entry, and say which are not as they were written",
    "prune": "remove what is never read: damaged entries, those of other settings, and what "
    "killed programs left unfinished",
}


def add_parser(commands: Any) -> None:
    """Add ``cache`` to a program's commands."""
    cache = commands.add_parser("cache", help="look after a cache on disk")
    actions = cache.add_subparsers(dest="action", required=True, metavar="{info,verify,prune}")
    for name, text in _HELP.items():
        action = actions.add_parser(name, help=text, description=f"{text.capitalize()}.")
        action.add_argument("path", type=Path, help="a cache_location, or a group's directory")
        action.add_argument("--json", action="store_true", help="write one JSON document")
        if name == "prune":
            action.add_argument(
                "--dry-run", action="store_true", help="say what would go, and keep it"
            )


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for; returns 0, 1 where something is damaged, 2 without a cache."""
    path: Path = arguments.path
    try:
        groups = groups_in(path)
    except OSError as error:
        return _complain(f"{path} cannot be read: {error.strerror}")
    if not groups:
        return _complain(f"{path} holds no cache: there is no group's directory in it")
    action: Callable[[GroupSurvey, argparse.Namespace], dict[str, Any]]
    action = {"info": _info, "verify": _verify, "prune": _prune}[arguments.action]
    reports = [_report(inner, action, arguments) for inner in groups]
    if arguments.json:
        text = json.dumps({"path": str(path), "groups": reports}, indent=1)
    else:
        text = "\n".join(_describe(report) for report in reports)
    sys.stdout.write(text + "\n")
    return max(int(report["is_damaged"]) for report in reports)


def _complain(text: str) -> int:
    sys.stderr.write(f"aioloader cache: {text}\n")
    return 2


def _report(
    path: Path,
    action: Callable[[GroupSurvey, argparse.Namespace], dict[str, Any]],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    report: dict[str, Any] = {"group": str(path), "identity": None}
    try:
        survey = GroupSurvey.open(path)
    except (OSError, NotPlain) as error:
        return {**report, "problem": str(error), "is_damaged": True}
    if survey.identity is not None:
        report["identity"] = msgspec.structs.asdict(survey.identity)
    if survey.problem:
        return {**report, "problem": survey.problem, "is_damaged": True}
    return {**report, **action(survey, arguments)}


def _info(survey: GroupSurvey, arguments: argparse.Namespace) -> dict[str, Any]:
    count = nbytes = 0
    with _Progress("entries") as progress:
        for path in survey.entries():
            count, nbytes = count + 1, nbytes + survey.size(path)
            progress.show(count, nbytes)
    return {**_lying(survey, count, nbytes), "is_damaged": False}


def _verify(survey: GroupSurvey, arguments: argparse.Namespace) -> dict[str, Any]:
    found = _judge_all(survey)
    return {
        **_lying(survey, len(found), sum(each.nbytes for each in found)),
        **_verdicts(found),
        "is_damaged": any(each.verdict != "good" for each in found),
    }


def _prune(survey: GroupSurvey, arguments: argparse.Namespace) -> dict[str, Any]:
    found = _judge_all(survey)
    bad = [each for each in found if each.verdict != "good"]
    kept = [each for each in found if each.verdict == "good"]
    report = _lying(survey, len(kept), sum(each.nbytes for each in kept))
    removed: list[Found] = []
    if not arguments.dry_run:
        removed = [each for each in bad if _is_removed(survey, each)]
        report["left_over"] -= sweep(survey.directory)
    return {
        **report,
        **_verdicts(bad),
        "dry_run": arguments.dry_run,
        "removed": [each.name for each in removed],
        "removed_bytes": sum(each.nbytes for each in removed),
        "is_damaged": len(removed) < len(bad),
    }


def _judge_all(survey: GroupSurvey) -> list[Found]:
    total = sum(1 for _ in survey.entries())
    found: list[Found] = []
    nbytes = 0
    with _Progress("entries", total) as progress:
        for number, path in enumerate(survey.entries(), 1):
            judged = survey.judge(path)
            if judged is not None:
                found.append(judged)
                nbytes += judged.nbytes
            progress.show(number, nbytes)
    return found


def _is_removed(survey: GroupSurvey, found: Found) -> bool:
    try:
        survey.remove(found.path)
    except (OSError, NotPlain):
        return False
    return True


def _lying(survey: GroupSurvey, entries: int, nbytes: int) -> dict[str, Any]:
    temporaries = survey.temporaries()
    return {
        "entries": entries,
        "bytes": nbytes,
        "being_written": temporaries[False],
        "left_over": temporaries[True],
        "strange": list(survey.strange),
    }


def _verdicts(found: Sequence[Found]) -> dict[str, Any]:
    return {
        "verdicts": [
            {"entry": each.name, "verdict": each.verdict, "reason": each.reason} for each in found
        ]
    }


def _describe(report: dict[str, Any]) -> str:
    """Return a report for people."""
    return "\n".join(_printable(line) for line in _lines(report))


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [report["group"]]
    if report["identity"] is not None:
        shown = report["identity"].items()
        lines.append("  made with  " + ", ".join(f"{k} {show(v)}" for k, v in shown))
    if "problem" in report:
        return [*lines, f"  damaged    {report['problem']}"]
    lines.append(f"  entries    {report['entries']}, {_size(report['bytes'])}")
    for key, text in (("being_written", "being written"), ("left_over", "left by killed programs")):
        if report[key]:
            lines.append(f"  unfinished {report[key]} {text}")
    lines += [f"  strange    {name} is no part of a cache" for name in report["strange"]]
    judged = report.get("verdicts", [])
    bad = [each for each in judged if each["verdict"] != "good"]
    lines += [f"  {each['verdict']:10} {each['entry']}: {each['reason']}" for each in bad]
    if report.get("dry_run"):
        lines.append(f"  to remove  {len(bad)}, and {report['left_over']} unfinished")
    elif "removed" in report:
        lines.append(f"  removed    {len(report['removed'])}, {_size(report['removed_bytes'])}")
    elif judged:
        lines.append(f"  good       {len(judged) - len(bad)} of {len(judged)}")
    return lines


def _printable(line: str) -> str:
    """Return a line without what a terminal would obey: names may be anybody's."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)


def _size(nbytes: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


@final
class _Progress:
    """How far long work has come: one line on stderr, if that is a terminal."""

    def __init__(self, what: str, total: int | None = None) -> None:
        self._what = what
        self._total = total
        self._on = sys.stderr.isatty()
        self._start = self._next = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._on:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def show(self, done: int, nbytes: int) -> None:
        """Say that so much is done."""
        now = time.monotonic()
        if not self._on or now < self._next:
            return
        self._next = now + _STEP_SECONDS
        bar = of = ""
        if self._total:
            filled = _BAR * min(done, self._total) // self._total
            bar, of = f"[{'#' * filled}{'.' * (_BAR - filled)}] ", f"/{self._total}"
        rate = _size(nbytes / max(now - self._start, 1e-3))
        sys.stderr.write(f"\r\x1b[K{bar}{done}{of} {self._what}, {_size(nbytes)}, {rate}/s")
        sys.stderr.flush()
