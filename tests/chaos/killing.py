"""Killing: the program itself, by SIGKILL, at random moments; nothing may be left of it.

Runs in a private mount namespace with file systems of its own, so that what is found there
can only have been left by the program.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = """
import asyncio, sys, time
print("up", flush=True)
import numpy as np
from aioloader import DataGroup, Loader

def load(item, arrays, seed):
    arrays["x"][...] = item
    time.sleep(0.002)

async def slow(item, arrays, seed):
    arrays["x"][...] = item
    await asyncio.sleep(0.002)

async def fetch(item):
    await asyncio.sleep(0.001)
    return item

async def main(kind):
    group = DataGroup(8, range(10**6), loader_arrays={"x": ((1000,), "int64", "int32")})
    options = {"processes": {"num_workers": 2}, "thread": {"num_workers": 0},
               "coroutine": {}, "fetch": {"fetch": fetch, "num_workers": 1}}[kind]
    while True:
        loader = Loader(slow if kind == "coroutine" else load, group, **options)
        async with loader:
            for _ in range(40):
                batch = await anext(loader)
                del batch

asyncio.run(main(sys.argv[1]))
"""
KINDS = ("processes", "processes", "fetch", "thread", "coroutine")
MARK = "AIOLOADER_KILLED_RUN"
PRIVATE = "AIOLOADER_PRIVATE"
LIMIT_SECONDS = 2.0


def in_private_namespace(arguments: list[str]) -> int:
    """Run this module again with a `/dev/shm` and a temporary directory of its own."""
    folder = tempfile.mkdtemp(prefix="killing-")
    mounts = f"mount -t tmpfs none /dev/shm && mount -t tmpfs none {folder}"
    command = f'{mounts} && exec "$@"'
    try:
        return subprocess.run(
            ["unshare", "-m", "sh", "-c", command, "sh", sys.executable, "-m", "chaos", *arguments],
            env={**os.environ, PRIVATE: folder, "TMPDIR": folder},
            check=False,
        ).returncode
    finally:
        shutil.rmtree(folder)


def processes_of(mark: str) -> list[int]:
    """Return the living processes that the marked program, or its server, has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"{MARK}={mark}".encode() in (path / "environ").read_bytes()
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if marked and state != "Z":
            found.append(int(path.name))
    return found


def left_behind(mark: str, folder: str) -> str:
    """Wait until nothing is left; says what is if that takes too long."""
    end = time.monotonic() + LIMIT_SECONDS
    while True:
        left = [f"process {pid}" for pid in processes_of(mark)]
        left += [f"/dev/shm/{name}" for name in os.listdir("/dev/shm")]
        left += [f"{folder}/{name}" for name in os.listdir(folder)]
        if not left or time.monotonic() > end:
            return ", ".join(left)
        time.sleep(0.01)


def kill_once(number: int, draw: random.Random, folder: str) -> tuple[str, float]:
    """Start the program, kill it; returns what is left, and after how long nothing was."""
    mark, kind = f"{os.getpid()}-{number}", draw.choice(KINDS)
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, kind],
        stdout=subprocess.PIPE,
        env={**os.environ, MARK: mark},
    )
    assert program.stdout is not None
    with program.stdout:
        program.stdout.readline()
        time.sleep(draw.uniform(0.3, 2.0))  # from its imports to the middle of its second loader
        program.send_signal(signal.SIGKILL)
        program.wait()
        started = time.monotonic()
        left = left_behind(mark, folder)
        return (f"{kind}: {left}" if left else ""), time.monotonic() - started


def main(times: int, seed: int) -> int:
    """Kill the program again and again; returns how often something was left."""
    folder = os.environ.get(PRIVATE)
    if folder is None:
        return in_private_namespace(["killing", f"--times={times}", f"--seed={seed}"])
    draw, wrong, longest = random.Random(seed), 0, 0.0
    for number in range(times):
        left, seconds = kill_once(number, draw, folder)
        longest = max(longest, seconds)
        if left:
            wrong += 1
            print(f"kill {number} left behind {left}", flush=True)
    print(f"{times} kills, {wrong} left something behind; all was gone after {longest:.2f} s")
    return wrong
