"""Runs of loaders in turns, each a process of its own, the limit in the same rounds."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import json
import os
import platform
import signal
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.loaders import LIMITS, LOADERS
from benchmarks.peers.enclosure import private_mounts
from benchmarks.program import Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.workloads import Workload

ROOT = Path(__file__).parents[1]
PATIENCE = 90.0
"""Seconds after which a run is given up."""

NO_FIGURES = "no figures"
"""What is wrong with a program that ends well and prints none, as preparing does."""

_POLL_SECONDS = 0.01
_TIDYING_SECONDS = 2.0  # which processes that clear away have when a program has ended
_ENDING_SECONDS = 10.0  # which the killed ones have
_MOST_FAILURES = 2  # then a loader is not asked again in this workload


@dataclass(frozen=True)
class Form:
    """How long a comparison may take, and of whom."""

    short: bool = False
    loaders: Sequence[str] = ()
    rounds: int = 0
    scale: float = 0.0

    def chosen(self, workload: Workload) -> list[str]:
        """Return the limit and the loaders that take part."""
        usual = workload.short if self.short else workload.loaders
        if not self.loaders:
            return list(usual)
        asked = [name for name in workload.loaders if name in self.loaders]
        limit = [workload.limit] if workload.limit and workload.limit not in asked else []
        return limit + asked

    def cases(self, workload: Workload) -> Sequence[str]:
        """Return the cases."""
        return (self.short and workload.short_cases) or workload.cases

    def count(self, workload: Workload) -> int:
        """Return the number of rounds."""
        return self.rounds or (workload.short_rounds if self.short else workload.rounds)

    def size(self, workload: Workload) -> float:
        """Return the scale of a run."""
        return self.scale or (workload.short_scale if self.short else workload.scale)


@dataclass(frozen=True)
class Outcome:
    """The figures of one run; ``wrong`` among them says why it is void."""

    round: int
    case: str
    loader: str
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def wrong(self) -> str:
        """Why it is void, or nothing."""
        return str(self.figures.get("wrong", ""))


def load_workload(name: str) -> Workload:
    """Return what a workload's module says of it."""
    found: Workload = importlib.import_module(f"benchmarks.workloads.{name}").WORKLOAD
    return found


def label(workload: Workload, loader: str) -> str:
    """Return what tables call a loader."""
    return workload.labels.get(loader) or {**LIMITS, **LOADERS}[loader]


def compare(
    name: str, form: Form, python: str, tell: Callable[[str], None] = print
) -> list[Outcome]:
    """Run a workload with all loaders in turns; returns the outcomes of all rounds."""
    workload = load_workload(name)
    with tempfile.TemporaryDirectory(prefix="aioloader-bench-") as scratch:
        if workload.prepares:
            setting = Setting("prepare", "", form.size(workload), scratch)
            failed = execute(python, name, setting)["wrong"]
            if failed != NO_FIGURES:
                tell(f"{name}: not prepared: {failed}")
        outcomes: list[Outcome] = []
        for number, case, loader in turns(workload, form):
            before = [each for each in outcomes if (each.case, each.loader) == (case, loader)]
            if sum(bool(each.wrong) for each in before) >= _MOST_FAILURES:
                continue
            setting = Setting(loader, case, form.size(workload), scratch)
            outcome = Outcome(number, case, loader, execute(python, name, setting))
            outcomes.append(outcome)
            tell(f"  {name} {case} {number + 1} {loader:16} {_brief(workload, outcome)}")
    return outcomes


def turns(workload: Workload, form: Form) -> Iterator[tuple[int, str, str]]:
    """Yield rounds, cases and loaders: each round begins with another loader."""
    loaders = form.chosen(workload)
    for number in range(form.count(workload)):
        for case in form.cases(workload):
            at = number * 5 % len(loaders)
            for loader in loaders[at:] + loaders[:at]:
                yield number, case, loader


def _brief(workload: Workload, outcome: Outcome) -> str:
    if outcome.wrong:
        return f"void: {outcome.wrong}"
    found = {key: outcome.figures.get(key) for key in workload.columns}
    return ", ".join(
        f"{workload.columns[key].heading} {workload.columns[key].form.format(value)}"
        for key, value in found.items()
        if value is not None
    )


def execute(python: str, workload: str, setting: Setting) -> dict[str, Any]:
    """Run one program, and end all that it leaves; returns its figures."""
    program_of = (python, "-m", "benchmarks.program", workload, json.dumps(asdict(setting)))
    command = (*private_mounts(), *program_of)  # what is left in /dev/shm goes with its mount
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        program = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            start_new_session=True,
        )
        in_time = _wait(lambda: _ended(program.pid), PATIENCE)
        _wait(lambda: not _members(program.pid), _TIDYING_SECONDS if in_time else 0)
        with contextlib.suppress(ProcessLookupError):  # its number is taken until it is waited for
            os.killpg(program.pid, signal.SIGKILL)
        _wait(lambda: not _members(program.pid), _ENDING_SECONDS)
        status = program.wait()
        if not in_time:
            return {"wrong": f"no end within {PATIENCE:.0f} s"}
        return _figures(status, _text(output), _text(errors))


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for a condition, for so long; returns whether it came true."""
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return met


def _ended(pid: int) -> bool:
    """Tell whether a child has ended, without taking its status."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _members(session: int) -> list[int]:
    """Return the processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(path.parent.name))
    return found


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode(errors="replace"))


def _figures(status: int, output: str, errors: str) -> dict[str, Any]:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if status == 0:
        return {"wrong": "", **json.loads(lines[-1])} if lines else {"wrong": NO_FIGURES}
    said = [line for line in errors.splitlines() if line[:1].isalpha() and ":" in line]
    return {"wrong": f"status {status}: {said[-1] if said else 'no message'}"[:200]}


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "processor": platform.machine(),
    }


def versions(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Return the versions that programs say they have."""
    found: dict[str, str] = {}
    for outcome in outcomes:
        found |= outcome.figures.get("versions", {})
    return dict(sorted(found.items()))
