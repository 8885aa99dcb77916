"""Run a faulty program where everything that it leaves behind can be found and is cleared away.

``python -m benchmarks.peers.enclosure LOADER FAULT``, which prints an `Outcome` as JSON, is the
parent of all orphans among the program's processes. `enclosed` starts it, where that is
permitted with a ``/dev/shm`` of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.processes import below

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0
"""Seconds without news after which a program is said to hang; more than any loader's time-out."""

SETTLE = 2.0
"""Seconds after a program's end that what it used has to go away."""

_EXIT_SECONDS = 10.0
_POLL_SECONDS = 0.005
_PR_SET_CHILD_SUBREAPER = 36
_MOUNT = 'mount -t tmpfs tmpfs /dev/shm && exec "$@"'


@dataclass
class Outcome:
    """What became of a program."""

    journal: list[dict[str, Any]] = field(default_factory=list)
    status: int | None = None  # None: it hung, and was killed
    killed: int | None = None  # whom we killed on its request
    processes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    errors: str = ""
    private: bool = True


@cache
def private_mounts() -> tuple[str, ...]:
    """Return the command that gives a program its own ``/dev/shm``; empty if not permitted."""
    for unshare in (("unshare", "-m"), ("unshare", "-rm")):
        command = (*unshare, "sh", "-c", _MOUNT, "sh")
        with contextlib.suppress(OSError):
            if subprocess.run((*command, "true"), capture_output=True).returncode == 0:
                return command
    return ()


def enclosed(python: str, loader: str, fault: str) -> Outcome:
    """Run a program with a loader and a fault, and return what became of it."""
    command = (*private_mounts(), python, "-m", "benchmarks.peers.enclosure", loader, fault)
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # for whatever processes a loader starts
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr.decode()}")
    return Outcome(**json.loads(done.stdout), private=bool(private_mounts()))


class Watch:
    """A program under way."""

    def __init__(self, loader: str, fault: str, scratch: Path) -> None:
        self.outcome = Outcome()
        self._temporary = scratch / "tmp"
        self._temporary.mkdir()
        self._journal = scratch / "journal"
        self._journal.touch()
        self._errors = scratch / "errors"
        self._flag = scratch / "flag"
        self._before = set(self._files())
        self._read = 0
        arguments = (loader, fault, str(self._journal), str(self._flag))
        with self._errors.open("wb") as errors:
            self._program = subprocess.Popen(
                (sys.executable, "-m", "benchmarks.peers.program", *arguments),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env={**os.environ, "TMPDIR": str(self._temporary), "JAX_PLATFORMS": "cpu"},
            )

    def follow(self) -> None:
        """Wait for the program's end, or for a time without news."""
        news = time.monotonic()
        limit = PATIENCE
        while self._program.poll() is None and time.monotonic() < news + limit:
            for entry in self._entries():
                news = time.monotonic()
                if entry.get("kill") in _descendants(os.getpid()):  # and nobody else's
                    self.outcome.killed = entry["kill"]
                    os.kill(entry["kill"], signal.SIGKILL)
                    self._flag.touch()
                if "end" in entry:
                    limit = _EXIT_SECONDS
            time.sleep(_POLL_SECONDS)
        self.outcome.status = self._program.poll()
        list(self._entries())

    def census(self) -> None:
        """Note what is left, as soon as that is nothing or the time for it is over."""
        deadline = time.monotonic() + SETTLE
        while True:
            self.outcome.processes = [_command(pid) for pid in _descendants(os.getpid())]
            self.outcome.files = sorted(set(self._files()) - self._before)
            nothing = not self.outcome.processes and not self.outcome.files
            if nothing or time.monotonic() > deadline:
                break
            _reap()
            time.sleep(_POLL_SECONDS)

    def clear(self) -> None:
        """End all that is left, and keep what was said."""
        while left := _descendants(os.getpid()):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._program.poll()
            _reap()
            time.sleep(_POLL_SECONDS)
        self.outcome.errors = self._errors.read_text(errors="replace")[-20_000:]

    def _entries(self) -> Iterator[dict[str, Any]]:
        with self._journal.open() as file:
            lines = file.read().split("\n")[:-1]  # the last one may be half written
        for line in lines[self._read :]:
            self._read += 1
            self.outcome.journal.append(json.loads(line))
            yield self.outcome.journal[-1]

    def _files(self) -> Iterator[str]:
        for folder in (Path("/dev/shm"), self._temporary):
            yield from (str(path) for path in folder.rglob("*"))


def _descendants(pid: int) -> list[int]:
    """Return the processes below one that still run."""
    return list(filter(_runs, below(pid)))


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return str(pid)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main(loader: str, fault: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as scratch:
        watch = Watch(loader, fault, Path(scratch))
        watch.follow()
        if watch.outcome.status is not None:
            watch.census()
        watch.clear()
    outcome = asdict(watch.outcome)
    del outcome["private"]
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
