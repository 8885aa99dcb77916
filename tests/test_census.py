"""The census: what a program left, and nothing that others have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import until

from aioloader._census import Census
from aioloader.testing import no_leaks

HOLDER = "import sys, time; file = open(sys.argv[1], 'wb'); time.sleep(600)"


async def test_shared_memory_of_other_programs_is_nobodys_leak() -> None:
    """A program that is no descendant of this one makes some meanwhile, and keeps it."""
    name = Path(f"/dev/shm/aioloader-test-{os.getpid()}")
    before = Census.take()
    command = f'{sys.executable} -c "{HOLDER}" {name} >/dev/null 2>&1 & echo $!'
    started = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    pid = int(started.stdout)  # its parent has ended: it is nobody's child here
    try:
        await until(name.exists)
        assert f"{name}" in Census.take().shared_memory
        assert "shared_memory" not in Census.take().beyond(before)
    finally:
        os.kill(pid, signal.SIGKILL)
        name.unlink(missing_ok=True)


def test_shared_memory_that_nobody_holds_is_a_leak() -> None:
    name = Path(f"/dev/shm/aioloader-test-{os.getpid()}")
    try:
        with pytest.raises(AssertionError, match=name.name), no_leaks(settle_seconds=0.1):
            name.touch()
    finally:
        name.unlink()


def test_a_process_that_had_just_been_started_is_not_new() -> None:
    """For a moment it has no command line, or its parent's."""
    before = Census(processes=frozenset({"4711: "}))
    after = Census(processes=frozenset({"4711: python -c pass", "4712: python -c pass"}))
    assert after.beyond(before) == {"processes": ["4712: python -c pass"]}
