"""Whole programs: what they define, what they leave behind, and what is theirs alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import descendants, is_alive, script

import aioloader

if TYPE_CHECKING:
    from collections.abc import Callable

PRELUDE = """
import asyncio, gc, os, signal, sys, time
from aioloader._executors.process import ProcessExecutor
from aioloader._memory.arena import Arena, slot_bytes
from aioloader._memory.declaring import make_layouts
from aioloader.errors import ItemError
from aioloader.protocols import Work

LAYOUTS = (make_layouts({"x": ((), "int64", "int32")}, 8, "arrays"),)

def settle(condition):
    end = time.monotonic() + 2
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)

class Bench:
    def __init__(self, load, **options):
        self.executor = ProcessExecutor(Work(load, LAYOUTS, **{"num_workers": 2, **options}))
        self.segment = self.executor.allocate(2 * slot_bytes(LAYOUTS))
    async def __aenter__(self):
        self.arena = Arena(self.segment, depth=2, layouts=LAYOUTS, reclaim=gc.collect)
        await self.executor.__aenter__()
        return self
    async def __aexit__(self, *exc):
        await self.executor.__aexit__(*exc)
        self.arena.close()
    async def fill(self, items):
        slot = await self.arena.acquire(0, 8)
        filled = await self.executor.fill(slot, range(len(items)), items, [None] * len(items))
        return slot.arrays["x"][: len(items)].tolist(), filled.extras
"""


def output_of(tmp_path: Path, text: str, **options: object) -> list[str]:
    """Run a program to its end and return the lines that it printed; it must say nothing else."""
    program = script(tmp_path, PRELUDE + text, **options)
    out, err = program.communicate(timeout=40)
    assert (program.returncode, err) == (0, "")
    return out.splitlines()


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)


# What they define ---------------------------------------------------------------------------------


def test_what_main_defines_works_in_workers(tmp_path: Path) -> None:
    """Functions, classes, enumerations and exceptions of a script, in every direction."""
    text = """
import dataclasses, enum

@dataclasses.dataclass
class Sample:
    number: int

class Color(enum.Enum):
    RED = 3

class MyError(Exception):
    pass

class Result:
    def __init__(self, number):
        self.number = number

def four():
    return 4

def load(item, arrays, seed):
    if isinstance(item, Sample):
        number = item.number
    elif isinstance(item, Color):
        assert item is Color.RED
        number = item.value
    else:
        number = item()
    if number == 7:
        raise MyError("seven")
    arrays["x"][...] = number
    return {"result": Result(number)}

async def main():
    async with Bench(load) as bench:
        for items in ([Sample(1), Sample(2)], [Color.RED], [four], [lambda: 5, four]):
            x, extras = await bench.fill(items)
            assert all(type(result) is Result for result in extras["result"])
            print(x, [result.number for result in extras["result"]])
        try:
            await bench.fill([Sample(7)])
        except ItemError as error:
            print(error.row, "MyError: seven" in str(error), type(error.__cause__) is MyError)

asyncio.run(main())
"""
    assert output_of(tmp_path, text) == [
        "[1, 2] [1, 2]",
        "[3] [3]",
        "[4] [4]",
        "[5, 4] [5, 4]",
        "0 True True",
    ]


def test_the_program_is_not_run_again_in_workers(tmp_path: Path) -> None:
    """A script needs no guard around what it does."""
    text = """
print("once")
async def main():
    async with Bench(lambda item, arrays, seed: arrays["x"].fill(item)) as bench:
        print((await bench.fill([1, 2]))[0])
asyncio.run(main())
"""
    assert output_of(tmp_path, text) == ["once", "[1, 2]"]


def test_workers_run_the_same_copy_of_the_package_as_the_program(tmp_path: Path) -> None:
    """As when a checkout is tried while another version is installed."""
    shutil.copytree(Path(aioloader.__file__).parent, tmp_path / "aioloader")
    text = """
def load(item, arrays, seed):
    return {"folder": sys.modules["aioloader._executors.recipes"].__file__}
async def main():
    async with Bench(load) as bench:
        _, extras = await bench.fill([1])
        print(set(extras["folder"]) == {sys.modules["aioloader._executors.recipes"].__file__})
        print(sys.modules["aioloader"].__file__)
asyncio.run(main())
"""
    assert output_of(tmp_path, text) == ["True", str(tmp_path / "aioloader" / "__init__.py")]


def test_what_workers_print_is_printed(tmp_path: Path) -> None:
    text = """
def load(item, arrays, seed):
    print("hello", item, flush=True)
async def main():
    async with Bench(load) as bench:
        await bench.fill([1])
asyncio.run(main())
"""
    assert output_of(tmp_path, text) == ["hello 1"]


def test_a_program_may_load_off_its_main_thread(tmp_path: Path) -> None:
    """And on several loops in several threads at once."""
    text = """
import threading
async def main(number):
    async with Bench(lambda item, arrays, seed: arrays["x"].fill(item)) as bench:
        assert (await bench.fill([number] * 4))[0] == [number] * 4
threads = [threading.Thread(target=lambda n=n: asyncio.run(main(n))) for n in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
settle(lambda: threading.active_count() == 1)
print(threading.active_count())
"""
    assert output_of(tmp_path, text) == ["1"]


# What is theirs alone -----------------------------------------------------------------------------


def test_nothing_of_the_program_is_changed(tmp_path: Path) -> None:
    """Not its start method, signal handlers, environment, threads, nor its resource tracker."""
    text = """
import multiprocessing, threading
from multiprocessing import forkserver, resource_tracker

def look():
    return {
        "start method": multiprocessing.get_start_method(allow_none=True),
        "signals": {n: signal.getsignal(n) for n in signal.valid_signals()},
        "wakeup": signal.set_wakeup_fd(-1),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "forkserver": forkserver._forkserver._forkserver_pid,
        "tracker": resource_tracker._resource_tracker._pid,
        "children": multiprocessing.active_children(),
        "threads": threading.active_count(),
        "loop": asyncio.get_event_loop_policy()._local._loop,
        "directory": os.getcwd(),
        "descriptors": os.listdir("/proc/self/fd"),
    }

async def main():
    async with Bench(lambda item, arrays, seed: arrays["x"].fill(item)) as bench:
        await bench.fill([1, 2])
        os.kill(bench.executor.worker_pids[0], signal.SIGKILL)
        await bench.fill([1, 2])
        during = look()
    for name in ("start method", "environment", "path", "forkserver", "tracker", "directory"):
        assert during[name] == before[name], name

before = look()
with asyncio.Runner() as runner:
    runner.run(main())
settle(lambda: threading.active_count() == before["threads"])
after = look()
for name in before:
    assert after[name] == before[name], (name, before[name], after[name])
print("the same")
"""
    assert output_of(tmp_path, text) == ["the same"]


def test_children_that_the_program_forks_leave_its_workers_alone(tmp_path: Path) -> None:
    """They inherit all that it has, and end as children of multiprocessing do."""
    text = """
import multiprocessing, warnings
warnings.simplefilter("ignore")

async def main():
    async with Bench(lambda item, arrays, seed: arrays["x"].fill(item)) as bench:
        while len(bench.executor.worker_pids) < 2:
            await bench.fill([1, 2])
        pids = bench.executor.worker_pids
        for _ in range(3):
            child = multiprocessing.get_context("fork").Process(target=int)
            child.start()
            await asyncio.to_thread(child.join, 20)
            print(child.exitcode, (await bench.fill([1, 2]))[0])
        print(bench.executor.worker_deaths, bench.executor.worker_pids == pids)

asyncio.run(main())
"""
    assert output_of(tmp_path, text) == ["0 [1, 2]"] * 3 + ["0 True"]


# How they end -------------------------------------------------------------------------------------

BUSY = """
async def main():
    async with Bench(LOAD) as bench:
        await bench.fill([0])
        while len(bench.executor.worker_pids) < 2:
            await asyncio.sleep(0.001)
        print(*bench.executor.worker_pids, flush=True)
        await bench.fill([1] * 8)

asyncio.run(main())
"""
LOADS = {
    "sleeping": "lambda item, arrays, seed: time.sleep(60 * item)",
    "computing": "lambda item, arrays, seed: [None for _ in iter(lambda: item, 0)] or None",
    "in C": "lambda item, arrays, seed: __import__('ctypes').PyDLL(None).sleep(60 * item) or None",
    "idle": "lambda item, arrays, seed: None",
}


def started(tmp_path: Path, load: str) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a program whose workers are busy, and return it with the pids of all below it."""
    text = BUSY.replace("LOAD", LOADS[load])
    if load == "idle":
        text = text.replace("await bench.fill([1] * 8)", "await asyncio.sleep(60)")
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    program = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + text],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert program.stdout is not None
    workers = [int(pid) for pid in program.stdout.readline().split()]
    below = descendants(program.pid)
    assert set(workers) <= set(below)
    assert len(workers) == 2
    return program, below


@pytest.mark.parametrize("load", list(LOADS))
def test_a_killed_program_leaves_nothing(load: str, tmp_path: Path) -> None:
    """Its workers and its server die with it, whatever they do; no memory and no file stays."""
    shared = os.listdir("/dev/shm")
    program, below = started(tmp_path, load)
    program.kill()
    _, err = program.communicate(timeout=20)
    wait_for(lambda: not any(map(is_alive, below)), 2.0)
    assert err == ""
    assert os.listdir("/dev/shm") == shared
    assert os.listdir(tmp_path / "tmp") == []


def test_a_child_that_outlives_its_program_keeps_no_workers_alive(tmp_path: Path) -> None:
    """A forked child inherits all descriptors, and so must not be what workers wait for."""
    text = """
async def main():
    async with Bench(lambda item, arrays, seed: arrays["x"].fill(item)) as bench:
        while len(bench.executor.worker_pids) < 2:
            await bench.fill([1, 2])
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        print(child, *bench.executor.worker_pids, flush=True)
        time.sleep(60)
asyncio.run(main())
"""
    program = script(tmp_path, PRELUDE + text)
    assert program.stdout is not None
    child, *workers = map(int, program.stdout.readline().split())
    try:
        below = set(descendants(program.pid)) - {child}
        assert set(workers) < below
        program.kill()
        program.wait(timeout=20)
        wait_for(lambda: not any(map(is_alive, below)), 2.0)
    finally:
        os.kill(child, signal.SIGKILL)
        program.communicate(timeout=20)


def test_a_program_that_is_killed_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    """At any moment between the first call and the first item."""
    text = """
async def main():
    async with Bench(lambda item, arrays, seed: None) as bench:
        print("entered", flush=True)
        await bench.fill([0] * 8)
        time.sleep(60)
asyncio.run(main())
"""
    for delay in (0.0, 0.1, 0.2):
        program = script(tmp_path, PRELUDE + text)
        assert program.stdout is not None
        assert program.stdout.readline() == "entered\n"
        end = time.monotonic() + delay
        below: set[int] = set()
        while time.monotonic() < end or not below:
            below |= set(descendants(program.pid))
        below |= set(descendants(program.pid))
        program.kill()
        program.communicate(timeout=20)
        wait_for(lambda: not any(map(is_alive, below)), 2.0)  # noqa: B023


@pytest.mark.parametrize("load", ["sleeping", "idle"])
def test_an_interrupted_program_ends_at_once_and_leaves_nothing(load: str, tmp_path: Path) -> None:
    """Ctrl-C goes to every process of the group, as a terminal sends it."""
    program, below = started(tmp_path, load)
    for pid in (program.pid, *below):
        os.kill(pid, signal.SIGINT)
    began = time.monotonic()
    _, err = program.communicate(timeout=20)
    assert time.monotonic() - began < 2
    assert "KeyboardInterrupt" in err
    assert err.count("Traceback") <= 2  # the program's own, and none of a worker
    wait_for(lambda: not any(map(is_alive, below)), 2.0)


@pytest.mark.parametrize("ending", ["pass", "raise SystemExit(0)", "sys.exit(0)"])
def test_a_program_that_ends_without_leaving_its_executor_ends(ending: str, tmp_path: Path) -> None:
    """It was careless; that is no reason to hang."""
    text = f"""
async def main():
    global bench
    bench = Bench(lambda item, arrays, seed: None)
    await bench.__aenter__()
    await bench.fill([1, 2])
    print("done", flush=True)
    {ending}

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""
    program = script(tmp_path, PRELUDE + text)
    began = time.monotonic()
    out, _ = program.communicate(timeout=20)
    assert out == "done\n"
    assert program.returncode == 0
    assert time.monotonic() - began < 10
