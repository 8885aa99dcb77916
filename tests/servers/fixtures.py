"""Fixtures of servers: import those that a test module or a conftest wants.

A server lives as long as the session; its settings are as they were before each test that asks
for it, and its counts are zero. ``web`` has no latency and no faults until it is told to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit
from urllib.request import urlopen

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OBJECTS", "Served", "content", "serving", "web", "web_folder", "web_process"]

OBJECTS = 256
_PROGRAM = Path(__file__).with_name("web.py")
_USUAL = {
    "latency": 0,
    "jitter": 0,
    "slow_every": 0,
    "slow_factor": 20,
    "knee": 0,
    "faults": 0,
    "kinds": "reset,stall,truncate,lie,408,429,500,503",
    "always": "",
    "victims": "",
    "retry_after": "0",
    "seed": 0,
}


def content(number: int) -> bytes:
    """Return what the object of this number holds: 512 bytes and up to 3 KiB more."""
    return number.to_bytes(8, "big") * (64 + number % 7 * 64)


class Served:
    """A server that runs, and how it is spoken to."""

    def __init__(self, folder: Path, options: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        self.start()

    def start(self, port: int = 0) -> None:
        """Start it, or start it again."""
        command = (sys.executable, str(_PROGRAM), str(self.folder), "--port", str(port))
        self._process = subprocess.Popen(
            (*command, *self._options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ""},
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, "the server did not start"

    @property
    def port(self) -> int:
        """The port that it listens at."""
        return urlsplit(self.url).port or 0

    def kill(self) -> None:
        """Kill it: its clients get resets, and are refused from then on."""
        assert self._process is not None
        self._process.kill()
        self._close()

    def restart(self) -> None:
        """Start it again where it was."""
        self.start(self.port)

    def stop(self) -> None:
        """End it as its own end of stdin does; harmless to repeat."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._close()

    def _close(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        with process:
            try:
                process.wait(10)
            finally:
                process.kill()

    def counts(self, *, reset: bool = False) -> dict[str, Any]:
        """Return what it was asked for since it was last told to forget."""
        return self._ask("__counts__", {"reset": "1"} if reset else {})

    def set(self, **settings: object) -> None:
        """Change settings."""
        self._ask("__set__", settings)

    def _ask(self, path: str, query: dict[str, Any]) -> dict[str, Any]:
        with urlopen(f"{self.url}/{path}?{urlencode(query)}", timeout=20) as answer:
            value: dict[str, Any] = json.load(answer)
            return value

    def __repr__(self) -> str:
        return f"<Served at {self.url}>"


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Served]:
    """Serve a folder."""
    served = Served(folder, options)
    try:
        yield served
    finally:
        served.stop()


@pytest.fixture(scope="session")
def web_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with objects: ``o/000`` holds ``content(0)``, and so on."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "o").mkdir()
    for number in range(OBJECTS):
        (folder / "o" / f"{number:03}").write_bytes(content(number))
    return folder


@pytest.fixture(scope="session")
def web_process(web_folder: Path) -> Iterator[Served]:
    """The server behind `web`."""
    with serving(web_folder) as served:
        yield served


@pytest.fixture
def web(web_process: Served) -> Served:
    """A web server, as if it were new."""
    web_process.set(**_USUAL)
    web_process.counts(reset=True)
    return web_process
