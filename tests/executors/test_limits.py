"""Limits of workers: a loader that may not have them says so, with the arithmetic, and at once."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

import pytest
from support import script

from aioloader._executors.limits import require_workers

if TYPE_CHECKING:
    from pathlib import Path

ON_LOOPS = ["asyncio"]

PROGRAM = """
import asyncio, ctypes, gc, os, resource, signal, sys, tempfile, threading, time

def become_somebody():
    # A limit on processes does not bind the superuser, so this becomes a user of its own
    # that can still read the interpreter's files.
    if os.getuid() == 0:
        for capability in (21, 24):  # CAP_SYS_ADMIN, CAP_SYS_RESOURCE
            assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP
        os.setresuid(1_000_000 + os.getpid(), 0, 0)
        os.execv(sys.executable, [sys.executable, *sys.argv])

if "--somebody" in sys.argv:
    become_somebody()
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads end at forks, so nobody could count

import jax
from aioloader import DataGroup, Loader
from aioloader._executors.forkserver import server

def load(item, arrays, seed):
    arrays["x"][...] = item

def loader(rows=64, epochs=1, **options):
    group = DataGroup(8, range(rows), loader_arrays={"x": ((), "int32", "int32")})
    return Loader(load, group, **{"end_at": ("epoch", epochs), "timeout": 30, **options})

async def outcome(**options):
    count = 0
    try:
        async with loader(**options) as entered:
            async for batch in entered:
                count += 1
                del batch
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return f"{count} batches"

def limit(which, number):
    resource.setrlimit(which, (number, resource.getrlimit(which)[1]))

def descriptors():
    return len(os.listdir("/proc/self/fd")) - 1

def children():
    path = f"/proc/self/task/{os.getpid()}/children"
    return open(path).read().split() if threading.active_count() == 1 else ["?"]

def census():
    gc.collect()
    return descriptors(), threading.active_count(), children()

async def at_rest():
    # The last loader's threads may still be ending: what they are in would never come again.
    deadline = time.monotonic() + 20
    while threading.active_count() > 1 and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return census()

async def settled(before):
    deadline = time.monotonic() + 20
    while census() != before and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return "nothing left" if census() == before else f"{before} became {census()}"

async def refused_by_server():
    pid = server._process.pid
    try:
        async with loader(num_workers=2) as entered:
            await anext(entered)
    except Exception as error:
        cause = f"{type(error.__cause__).__name__} {error.__cause__.errno}"
        print(f"{type(error).__name__}: {error}: {cause}")
        print(server._process.pid == pid and server._process.poll() is None)
    server.release()
"""


def lines_of(tmp_path: Path, text: str, *args: str, errors: str = "") -> list[str]:
    """Run a program and return what it prints; it must end well, and say nothing else."""
    program = script(tmp_path, f"{PROGRAM}\n{text}", *args)
    out, err = program.communicate(timeout=50)
    assert program.returncode == 0, err
    assert re.fullmatch(errors, err, re.DOTALL), err
    return out.splitlines()


# Descriptors --------------------------------------------------------------------------------------


def test_too_few_descriptors_are_counted_out_when_the_loader_is_entered(tmp_path: Path) -> None:
    """What it says it needs is enough, and with one less it does not begin."""
    text = """
async def main():
    await outcome(num_workers=0)
    before = await at_rest()
    limit(resource.RLIMIT_NOFILE, descriptors() + 8)
    refused = await outcome(num_workers=3)
    print(refused, await settled(before), sep="; ")
    words = [word.strip(",") for word in refused.split()]
    needed, is_open = int(words[words.index("need") + 1]), int(words[words.index("and") + 1])
    for number in (needed + is_open - 1, needed + is_open):
        limit(resource.RLIMIT_NOFILE, number)
        print(await outcome(num_workers=3), await settled(before), sep="; ")
asyncio.run(main())
"""
    first, second, third = lines_of(tmp_path, text)
    message = (
        r"OSError: \[Errno 24\] 3 workers need 43 descriptors, the limit is \d+ and \d+ are open: "
        r"use fewer workers or raise `ulimit -n`; nothing left"
    )
    assert re.fullmatch(message, first)
    assert re.fullmatch(message, second)
    assert third == "8 batches; nothing left"


def test_thousands_of_batches_pass_with_few_descriptors(tmp_path: Path) -> None:
    text = """
async def main():
    limit(resource.RLIMIT_NOFILE, 64)
    await outcome(num_workers=0)
    before = await at_rest()
    print(await outcome(rows=8 * 500, epochs=8), await settled(before), sep="; ")
asyncio.run(main())
"""
    assert lines_of(tmp_path, text) == ["4000 batches; nothing left"]


def test_a_fork_server_with_too_few_descriptors_is_an_error(tmp_path: Path) -> None:
    """What is to be handed to a worker does not reach it; it says so, and goes on."""
    text = """
async def main():
    await outcome(num_workers=0)
    before = await at_rest()
    server.retain()
    resource.prlimit(server._process.pid, resource.RLIMIT_NOFILE, (11, 11))
    await refused_by_server()
    print(await settled(before))
    print(await outcome(num_workers=2), await settled(before), sep="; ")
asyncio.run(main())
"""
    refused, same, left, after = lines_of(tmp_path, text)
    assert re.fullmatch(
        r"LoadError: batch 0 of .* worker processes cannot be started: OSError: \[Errno 24\] a "
        r"worker process cannot be started \(Too many open files\): .* raise `ulimit -n`: "
        r"OSError 24",
        refused,
    )
    assert (same, left, after) == ("True", "nothing left", "8 batches; nothing left")


# Processes and threads ----------------------------------------------------------------------------


def test_too_few_processes_are_counted_out_when_the_loader_is_entered(tmp_path: Path) -> None:
    """What it says it needs is enough, and with one less it does not begin."""
    text = """
async def main():
    await outcome(num_workers=0)
    before = await at_rest()
    tasks = len(os.listdir("/proc/self/task"))
    limit(resource.RLIMIT_NPROC, tasks + 4)
    refused = await outcome(num_workers=2)
    print(refused, await settled(before), sep="; ")
    words = [word.strip(":") for word in refused.split()]
    needed, has = int(words[words.index("need") + 1]), int(words[words.index("has") + 1])
    for number in (needed + has - 1, needed + has):
        limit(resource.RLIMIT_NPROC, number)
        print(await outcome(num_workers=2), await settled(before), sep="; ")
asyncio.run(main())
"""
    first, second, third = lines_of(tmp_path, text, "--somebody")
    message = (
        r"BlockingIOError: \[Errno 11\] 2 workers need 12 processes and threads, the user \d+ may "
        r"have \d+ \(RLIMIT_NPROC\) and has \d+: use fewer workers or raise `ulimit -u`; "
        r"nothing left"
    )
    assert re.fullmatch(message, first)
    assert re.fullmatch(message, second)
    assert third == "8 batches; nothing left"


def test_a_worker_that_cannot_be_forked_is_an_error_and_no_end_of_the_server(
    tmp_path: Path,
) -> None:
    text = """
async def main():
    await outcome(num_workers=0)
    before = await at_rest()
    limit(resource.RLIMIT_NPROC, len(os.listdir("/proc/self/task")) + 1)
    server.retain()  # which keeps the limit that the program now leaves behind
    limit(resource.RLIMIT_NPROC, resource.getrlimit(resource.RLIMIT_NPROC)[1])
    await refused_by_server()
    print(await settled(before))
    print(await outcome(num_workers=2), await settled(before), sep="; ")
asyncio.run(main())
"""
    refused, same, left, after = lines_of(tmp_path, text, "--somebody")
    assert re.fullmatch(
        r"LoadError: batch 0 of .* worker processes cannot be started: BlockingIOError: "
        r"\[Errno 11\] a worker process cannot be started \(Resource temporarily unavailable\): "
        r".*the user \d+ may have \d+ \(RLIMIT_NPROC\) and has \d+: use fewer workers or .*"
        r"raise `ulimit -u`: BlockingIOError 11",
        refused,
    )
    assert (same, left, after) == ("True", "nothing left", "8 batches; nothing left")


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_threads_and_the_server_are_refused_with_the_same_words(spare: int, tmp_path: Path) -> None:
    """A thread, of which a pool needs two, and the process that workers are forked from."""
    text = f"""
from aioloader._executors.limits import spare_threads
limit(resource.RLIMIT_NPROC, len(os.listdir("/proc/self/task")) + {spare})
try:
    with spare_threads(2):
        print("threads")
        server.retain()
except OSError as error:
    print(error.errno, error)
server.release()
print(threading.active_count(), children())
limit(resource.RLIMIT_NPROC, resource.getrlimit(resource.RLIMIT_NPROC)[1])
with server.use():
    print(len(children()))
print(children())
"""
    what = "a worker's threads" if spare < 2 else "the process that workers are forked from"
    *refused, message, left, running, after = lines_of(tmp_path, text, "--somebody")
    assert refused == (["threads"] if spare == 2 else [])
    assert re.fullmatch(
        rf"11 \[Errno 11\] {what} cannot be started \(Resource temporarily unavailable\): .*"
        r"the user \d+ may have \d+ \(RLIMIT_NPROC\) and has \d+: use fewer workers or .*"
        r"raise `ulimit -u`",
        message,
    )
    assert (left, running, after) == ("1 []", "1", "[]")


def test_a_cgroup_that_allows_too_few_processes_is_named(tmp_path: Path) -> None:
    """The least of those above it counts, too."""
    files = {
        "proc/self/cgroup": "8:pids:/jobs/7\n",
        "proc/self/mountinfo": "39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n",
        "sys/fs/cgroup/pids/jobs/7/pids.max": "max\n",
        "sys/fs/cgroup/pids/jobs/7/pids.current": "3\n",
        "sys/fs/cgroup/pids/jobs/pids.max": "40\n",
        "sys/fs/cgroup/pids/jobs/pids.current": "22\n",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    require_workers(4, tmp_path)
    with pytest.raises(OSError, match="workers need") as caught:
        require_workers(5, tmp_path)
    assert caught.value.errno == errno.EAGAIN
    assert caught.value.strerror == (
        f"5 workers need 21 processes and threads, the cgroup {tmp_path}/sys/fs/cgroup/pids/jobs "
        "allows 40 (pids.max) and has 22: use fewer workers or raise its pids.max"
    )


def test_a_server_that_ends_at_once_is_an_error(tmp_path: Path) -> None:
    """Whatever the reason is; it is in the server's own words on stderr."""
    text = """
async def main():
    await outcome(num_workers=0)
    before = await at_rest()
    sys.executable = "/bin/false"
    try:
        async with loader() as entered:
            await anext(entered)
    except Exception as error:
        print(error, await settled(before), sep="; ")
asyncio.run(main())
"""
    (line,) = lines_of(tmp_path, text)
    assert "cannot be started: ChildProcessError: the process that workers are forked from" in line
    assert line.endswith("nothing left")


# Directories --------------------------------------------------------------------------------------


def test_directories_that_cannot_be_written_to_do_no_harm(tmp_path: Path) -> None:
    """No file is made anywhere, neither where temporary files are nor at home."""
    text = """
for name in ("TMPDIR", "TEMP", "TMP", "HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
    os.environ[name] = "/proc/self/task"  # which nobody can write to
tempfile.tempdir = "/proc/self/task"
sys.dont_write_bytecode = True
made = []

def note(event, args):
    if event in ("os.mkdir", "tempfile.mkstemp", "tempfile.mkdtemp", "os.rename"):
        made.append((event, args))
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    if event == "open" and isinstance(args[0], str) and args[2] & writes:
        made.append((event, args))

async def main():
    await outcome(num_workers=0)
    sys.addaudithook(note)
    for options in ({"num_workers": 2}, {"num_workers": 0}):
        print(await outcome(**options))
    print([entry for entry in made if entry[1][0] != os.devnull])
asyncio.run(main())
"""
    assert lines_of(tmp_path, text) == ["8 batches", "8 batches", "[]"]
