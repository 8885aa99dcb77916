"""Limits of memory: a loader that cannot have its slots says so when it is entered, and why."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support import script

from aioloader._memory.limits import cgroup_folders, require_memory

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20

PROGRAM = """
import asyncio, os, resource, sys
import numpy as np
from aioloader import DataGroup, Loader

MIB = 1 << 20

def load(item, arrays, seed):
    arrays["x"][...] = item

async def outcome(mib, **options):
    layouts = {"x": ((mib, 1 << 20), "uint8", "uint8")}
    group = DataGroup(1, range(4), loader_arrays=layouts)
    try:
        async with Loader(load, group, depth=1, end_at=("epoch", 1), **options) as loader:
            count = 0
            async for batch in loader:
                count += int(np.asarray(batch.arrays["x"])[0, 0, 0])
                del batch
            return f"sum {count}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def limit(which, nbytes):
    resource.setrlimit(which, (nbytes, resource.getrlimit(which)[1]))

def descriptors():
    return len(os.listdir("/proc/self/fd"))
"""


def lines_of(tmp_path: Path, text: str) -> list[str]:
    """Run a program and return what it prints; it must end well, and say nothing else."""
    program = script(tmp_path, PROGRAM + text)
    out, err = program.communicate(timeout=50)
    assert (program.returncode, err) == (0, "")
    return out.splitlines()


class Tree:
    """A file tree with what the kernel would say in ``/proc`` and ``/sys/fs/cgroup``."""

    def __init__(self, root: Path, cgroup: str, mounts: str, available: int = 64 * MIB) -> None:
        self.root = root
        self.write("proc/meminfo", f"MemTotal: 9 kB\nMemAvailable: {available // 1024} kB\n")
        self.write("proc/self/cgroup", cgroup)
        self.write("proc/self/mountinfo", mounts)

    def write(self, path: str, text: object) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}")

    def folder(self, path: str, **values: object) -> None:
        for name, value in values.items():
            self.write(f"sys/fs/cgroup/{path}/{name.replace('__', '.')}", f"{value}\n")


VERSION_2 = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
VERSION_1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


def test_the_machines_memory_is_a_limit(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/\n", VERSION_2)
    require_memory(64 * MIB, root=tree.root)
    message = r"need 64\.0 MiB, and 64\.0 MiB are available on this machine \(MemAvailable\): use"
    with pytest.raises(MemoryError, match=message):
        require_memory(64 * MIB + 1, root=tree.root)


def test_the_cgroups_memory_is_a_limit(tmp_path: Path) -> None:
    """Its limit, less what it has, and files' pages that the kernel would drop first."""
    tree = Tree(tmp_path, "0::/a/b\n", VERSION_2)
    tree.folder("a/b", memory__max=40 * MIB, memory__current=30 * MIB)
    tree.folder("a/b", memory__stat=f"anon 5\ninactive_file {4 * MIB}\nactive_file {2 * MIB}")
    require_memory(16 * MIB, root=tree.root)
    with pytest.raises(MemoryError) as caught:
        require_memory(17 * MIB, root=tree.root)
    assert str(caught.value) == (
        "the loader's slots need 17.0 MiB, and 16.0 MiB are available in the cgroup "
        f"{tmp_path}/sys/fs/cgroup/a/b (memory.max: 40.0 MiB, 30.0 MiB in use, 6.0 MiB of that "
        "are cached files): use a smaller depth or batch_size, or raise its memory.max"
    )


def test_the_tightest_cgroup_counts_whichever_it_is(tmp_path: Path) -> None:
    """One above may have less left than our own, which may have no limit at all."""
    tree = Tree(tmp_path, "0::/a/b\n", VERSION_2)
    tree.folder("a/b", memory__max="max", memory__current=0)
    tree.folder("a", memory__max=20 * MIB, memory__current=15 * MIB)
    with pytest.raises(MemoryError, match=r"5\.0 MiB are available in the cgroup .*/cgroup/a \("):
        require_memory(6 * MIB, root=tree.root)
    require_memory(5 * MIB, root=tree.root)


def test_cgroups_of_the_first_version_count_as_well(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "4:cpu,memory:/jobs/7\n0::/\n", VERSION_1)
    tree.folder(
        "memory/jobs/7",
        memory__limit_in_bytes=20 * MIB,
        memory__usage_in_bytes=15 * MIB,
        memory__stat=f"inactive_file 9\ntotal_inactive_file {2 * MIB}",
    )
    tree.folder("memory", memory__limit_in_bytes=1 << 62, memory__usage_in_bytes=1)
    require_memory(7 * MIB, root=tree.root)
    message = r"7\.0 MiB are available in the cgroup .*/memory/jobs/7 .* its memory.limit_in_bytes"
    with pytest.raises(MemoryError, match=message):
        require_memory(8 * MIB, root=tree.root)


def test_a_container_sees_its_own_cgroup_where_its_mount_begins(tmp_path: Path) -> None:
    """Its path is the host's, which it cannot see, or is written as seen from elsewhere."""
    mounts = "35 31 0:32 /docker/1f /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    for number, path in enumerate(["/docker/1f", "/docker/1f/in", "/elsewhere", "/../x"]):
        tree = Tree(tmp_path / str(number), f"4:memory:{path}\n", mounts)
        tree.folder("memory/in", tasks="")
        found = [
            str(folder.relative_to(tree.root)) for folder in cgroup_folders("memory", tree.root)
        ]
        inner = ["sys/fs/cgroup/memory/in"] if path.endswith("/in") else []
        assert found == [*inner, "sys/fs/cgroup/memory"]


def test_a_system_that_tells_nothing_sets_no_limit(tmp_path: Path) -> None:
    require_memory(1 << 50, root=tmp_path)


def test_a_file_size_limit_is_named_where_workers_share_memory(tmp_path: Path) -> None:
    """Memory that is shared is a file; without the check it would be error number 27."""
    text = """
before = descriptors()
limit(resource.RLIMIT_FSIZE, 3 * MIB)
print(asyncio.run(outcome(4)))
print(asyncio.run(outcome(2)))
print(asyncio.run(outcome(4, num_workers=0)))
print(descriptors() - before)
"""
    refused, *others = lines_of(tmp_path, text)
    assert re.fullmatch(
        r"MemoryError: the loader's slots need 4\.0 MiB, and 3\.0 MiB are available in one file, "
        r"which is what workers share \(RLIMIT_FSIZE: 3\.0 MiB\): use a smaller depth or "
        r"batch_size, or raise `ulimit -f`",
        refused,
    )
    assert others == ["sum 6", "sum 6", "0"]


def test_an_address_space_limit_is_named(tmp_path: Path) -> None:
    """Whether the memory is shared or not; and what fits is loaded."""
    text = """
asyncio.run(outcome(1, num_workers=0))  # jax's own threads and memory are there now
pages = int(open("/proc/self/statm").read().split()[0])
limit(resource.RLIMIT_AS, pages * resource.getpagesize() + 600 * MIB)
for workers in (0, 1):
    print(asyncio.run(outcome(700, num_workers=workers)))
print(asyncio.run(outcome(1)))
"""
    *refused, loaded = lines_of(tmp_path, text)
    for line in refused:
        assert re.fullmatch(
            r"MemoryError: the loader's slots need 700\.0 MiB, and [56]\d\d\.\d MiB are available "
            r"in this process's address space \(RLIMIT_AS: [\d,.]+ MiB, [\d,.]+ MiB in use\): use "
            r"a smaller depth or batch_size, or raise `ulimit -v`",
            line,
        )
    assert (len(refused), loaded) == (2, "sum 6")


def test_a_worker_that_cannot_map_the_memory_says_how_much_it_is(tmp_path: Path) -> None:
    text = """
from aioloader._memory.mapping import map_descriptor
from aioloader._memory.segment import SharedSegment
segment = SharedSegment(64 * MIB)
pages = int(open("/proc/self/statm").read().split()[0])
limit(resource.RLIMIT_AS, pages * resource.getpagesize() + MIB)
before = descriptors()
try:
    map_descriptor(os.dup(segment.descriptor), 64 * MIB)
except MemoryError as error:
    print(error)
print(descriptors() - before)
"""
    message, left = lines_of(tmp_path, text)
    assert "need 64.0 MiB of shared memory, and mapping it in a worker failed" in message
    assert "`ulimit -v`" in message
    assert left == "0"


def test_a_full_directory_for_shared_memory_does_no_harm(tmp_path: Path) -> None:
    """The slots are not in it, so its size is no limit; a container's is often 64 MiB."""
    text = """
with open("/proc/self/mounts") as mounts:
    print("tiny" if any(line.startswith("tiny /dev/shm ") for line in mounts) else "as it is")
print(os.statvfs("/dev/shm").f_bavail if sys.argv[1:] == ["tiny"] else 0)
print(asyncio.run(outcome(4, num_workers=2)))
print([name for name in os.listdir("/dev/shm") if name != "filler"] if sys.argv[1:] else [])
"""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + text)
    command, kind = [sys.executable, str(program)], "as it is"
    if _may_mount():
        fill = "mount -t tmpfs -o size=64k tiny /dev/shm; cat /dev/zero > /dev/shm/filler"
        command = ["unshare", "-m", "sh", "-c", f'{fill}; exec "$@"', "sh", *command, "tiny"]
        kind = "tiny"
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=50, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout.splitlines() == [kind, "0", "sum 6", "[]"], done.stderr


def _may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    attempt = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/dev/shm"]
    return subprocess.run(attempt, capture_output=True, timeout=20).returncode == 0
