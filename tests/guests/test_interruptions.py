"""Ctrl-C at any moment, once or twice, and other ends that a program does not announce."""

from __future__ import annotations

import re
import signal
import time
from typing import TYPE_CHECKING

import pytest
from support import both_loops, descendants, is_alive, run_on, until

if TYPE_CHECKING:
    import subprocess

    from conftest import Start

# Both workers come to an item that takes for ever, in C. A thread presses Ctrl-C, as a terminal
# does it: for all processes of the group. The program waits for the thread in the end, so that
# what it presses meets the program, and never the interpreter that is on its way out.
PROGRAM = """
import asyncio, glob, os, signal, sys, threading, time
import aioloader
from aioloader import DataGroup, Loader

run = {"asyncio": asyncio.run, "uvloop": aioloader.run}[sys.argv[1]]
moment, *pauses = sys.argv[2:]

def press():
    for pause in pauses:
        time.sleep(float(pause))
        os.killpg(os.getpgrp(), signal.SIGINT)

pressing = threading.Thread(target=press)

def now(this):
    if moment == this:
        print("now", flush=True)
        pressing.start()

def load(item, arrays, seed):
    if item >= 32:
        open(f"{sys.argv[0]}.{os.getpid()}", "w").close()
        time.sleep(600)
    arrays["x"][...] = item

def stuck():
    return len(glob.glob(f"{sys.argv[0]}.*")) == 2

async def coroutine_load(item, arrays, seed):
    await asyncio.sleep(600 if item >= 32 else 0)
    arrays["x"][...] = item

async def main():
    group = DataGroup(8, range(10**6), loader_arrays={"x": ((), "int32", "int32")})
    way = {"load": load, "num_workers": 2}
    if moment == "in coroutines":
        way = {"load": coroutine_load}
    if moment == "in a thread":
        way = {"load": load, "num_workers": 0}
    loader = Loader(training=group, **way)
    async with loader:
        while moment == "while workers start" and len(loader._executor.worker_pids) < 2:
            await asyncio.sleep(0)
        now("while workers start")
        async for batch in loader:
            if batch.batch_num == 3:
                now("in the epoch"), now("in coroutines"), now("in a thread")
                if moment == "while leaving":
                    break
        while not stuck():
            await asyncio.sleep(0.001)
        now("while leaving")

try:
    run(main())
finally:
    pressing.join()
    while signal.SIGINT in signal.sigpending():  # some other thread is about to hear it
        time.sleep(0.001)
    time.sleep(0.01)
"""

MOMENTS = [
    "while workers start",
    "in the epoch",
    "while leaving",
    "in coroutines",
    "in a thread",
]

# A traceback of KeyboardInterrupt, with what it came from; and nothing else.
CAUSES = r"(asyncio\.exceptions\.)?CancelledError.*|During handling of the above exception.*|"
TRACEBACK = re.compile(rf"Traceback \(most recent call last\):|  .*|{CAUSES}|KeyboardInterrupt|")


def read_line(program: subprocess.Popen[str]) -> str:
    """Return the next line that a program prints."""
    assert program.stdout is not None
    return program.stdout.readline()


def end_of(program: subprocess.Popen[str]) -> str:
    """Return a program's stderr, once it has ended: soon, and with all that was below it."""
    assert read_line(program) == "now\n"
    below = descendants(program.pid)
    started = time.monotonic()
    _, errors = program.communicate(timeout=20)
    assert time.monotonic() - started < 5
    run_on("asyncio", until(lambda: not any(map(is_alive, below)), seconds=2))
    return errors


@both_loops
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_ends_a_program_at_once_whatever_its_workers_do(
    start: Start, loop: str, moment: str
) -> None:
    """By a KeyboardInterrupt, with its traceback and no other message, and nothing left."""
    program = start(PROGRAM, loop, moment, "0.02", start_new_session=True)
    errors = end_of(program)
    assert program.returncode == -signal.SIGINT, errors
    lines = errors.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "KeyboardInterrupt"
    assert [line for line in lines if not TRACEBACK.fullmatch(line)] == []


@both_loops
@pytest.mark.parametrize("moment", MOMENTS[:3])
@pytest.mark.parametrize("pauses", [("0.02", "0"), ("0", "0.05")])
def test_ctrl_c_twice_ends_a_program_too(
    start: Start, loop: str, moment: str, pauses: tuple[str, str]
) -> None:
    """The second may meet asyncio or uvloop at work, and they may have more to say about it."""
    program = start(PROGRAM, loop, moment, *pauses, start_new_session=True)
    errors = end_of(program)
    assert program.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert 'File "<string>"' not in errors  # workers and their server say nothing


# Programs that end without leaving their loader, each in its own way.
ABRUPT = """
import asyncio, glob, os, sys, time
import aioloader, uvloop
from aioloader import DataGroup, Loader

run = {"asyncio": asyncio.run, "uvloop": aioloader.run}[sys.argv[1]]
way = sys.argv[2]

def load(item, arrays, seed):
    if item >= 32:
        open(f"{sys.argv[0]}.{os.getpid()}", "w").close()
        time.sleep(600)
    arrays["x"][...] = item

async def main():
    global loader
    group = DataGroup(8, range(10**6), loader_arrays={"x": ((), "int32", "int32")})
    loader = Loader(load, group, num_workers=2)
    await loader.__aenter__()
    for _ in range(4):
        await anext(loader)
    while len(glob.glob(f"{sys.argv[0]}.*")) < 2:
        await asyncio.sleep(0.001)
    print("now", flush=True)
    if way == "sys.exit":
        sys.exit(3)
    if way == "sys.exit in a callback":
        asyncio.get_running_loop().call_soon(sys.exit, 3)
    if way == "an exception":
        raise LookupError("the program's own")
    if way == "sys.exit in a callback":
        await asyncio.sleep(600)

if way == "a loop that is never closed":
    loop = {"asyncio": asyncio, "uvloop": uvloop}[sys.argv[1]].new_event_loop()
    loop.run_until_complete(main())
else:
    run(main())
"""


@both_loops
@pytest.mark.parametrize(
    ("way", "status", "message"),
    [
        ("sys.exit", 3, ""),
        ("sys.exit in a callback", 3, ""),
        ("an exception", 1, "LookupError: the program's own\n"),
        ("a return", 0, ""),
        ("a loop that is never closed", 0, ""),
    ],
)
def test_a_program_that_never_leaves_its_loader_ends_all_the_same(
    start: Start, loop: str, way: str, status: int, message: str
) -> None:
    """With its own status and message, with both workers at an item that takes for ever."""
    program = start(ABRUPT, loop, way)
    errors = end_of(program)
    assert program.returncode == status, errors
    assert message in errors
    assert ("Traceback" in errors) == bool(message)
