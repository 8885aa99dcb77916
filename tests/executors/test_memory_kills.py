"""Memory kills: a worker that the system killed for want of memory is told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aioloader._executors.crew import Death
from aioloader._executors.memory_kills import MemoryKills

if TYPE_CHECKING:
    from pathlib import Path

VERSION_1 = ("4:memory:/box/inner\n3:cpu:/\n", "sys/fs/cgroup/memory/box/inner/memory.oom_control")
VERSION_2 = ("0::/box/inner\n", "sys/fs/cgroup/box/inner/memory.events")


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(("groups", "counter"), [VERSION_1, VERSION_2, ("", "proc/vmstat")])
def test_a_count_that_rose_is_seen(tmp_path: Path, groups: str, counter: str) -> None:
    """Whether the kernel counts for the system, or for the container of this process."""
    write(tmp_path, "proc/self/cgroup", groups)
    write(tmp_path, counter, "low 7\noom_kill 3\n")
    kills = MemoryKills(tmp_path)
    assert kills.rose() is False
    write(tmp_path, counter, "low 9\noom_kill 4\n")
    assert kills.rose() is True


def test_where_nobody_counts_nothing_is_said(tmp_path: Path) -> None:
    assert MemoryKills(tmp_path).rose() is None


@pytest.mark.parametrize(
    ("starved", "words"),
    [
        (True, "killed by SIGKILL (by the system, it seems: it has killed"),
        (False, "killed by SIGKILL (by hand; the system has not killed"),
        (None, "killed by SIGKILL (by hand, or by the system for want of memory)"),
    ],
)
def test_a_death_says_who_killed(starved: bool | None, words: str) -> None:
    assert words in Death(0, 4711, -9, starved=starved).describe()
    assert "memory" not in Death(0, 4711, -11, starved=starved).describe()
