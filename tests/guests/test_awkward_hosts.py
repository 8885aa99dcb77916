"""In programs that make it hard: odd defaults, Ctrl-C at odd moments, threads that go on."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from support import both_loops

if TYPE_CHECKING:
    from conftest import Start

BEGINNING = """
import asyncio, os, signal, socket, sys, threading, time
import aioloader
from aioloader import DataGroup, Loader
from aioloader._executors.forkserver import server

run = {"asyncio": asyncio.run, "uvloop": aioloader.run}[sys.argv[1]]
group = DataGroup(8, range(64), loader_arrays={"x": ((), "int32", "int32")})

def load(item, arrays, seed):
    arrays["x"][...] = item

async def main(load):
    async with Loader(load, group, end_at=("epoch", 1), num_workers=2) as loader:
        async for batch in loader:
            pass
        print(loader._executor.worker_deaths, flush=True)
"""

DEFAULT_TIMEOUT = """
socket.setdefaulttimeout(0.1)
run(main(load))
"""

EARLY = """
server.retain()
first = server._process.pid
os.kill(first, signal.SIGINT)
run(main(load))
assert server._process.pid == first
server.release()
"""

TWICE = """
async def press_twice(item, arrays, seed):
    await asyncio.sleep(0)
    if item == 9:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    load(item, arrays, seed)

run(main(press_twice))
"""

DAEMON = """
def stuck(item, arrays, seed):
    if item >= 32:
        time.sleep(600)
    load(item, arrays, seed)

async def stay():
    async with Loader(stuck, group, num_workers=2) as loader:
        for _ in range(4):
            await anext(loader)
        loaded.set()
        await anext(loader)

loaded = threading.Event()
threading.Thread(target=run, args=(stay(),), daemon=True).start()
loaded.wait()
"""


def outcome(start: Start, text: str, loop: str) -> tuple[int, str, str]:
    """Run a program to its end; returns its status, and what it wrote."""
    program = start(BEGINNING + text, loop)
    output, errors = program.communicate(timeout=20)
    return program.returncode, output, errors


@both_loops
def test_a_default_time_out_for_sockets_costs_no_worker(start: Start, loop: str) -> None:
    """Workers wait for work for as long as it takes, and the end waits for nothing."""
    assert outcome(start, DEFAULT_TIMEOUT, loop) == (0, "0\n", "")


@both_loops
def test_ctrl_c_does_not_end_what_workers_are_forked_from(start: Start, loop: str) -> None:
    """Not even before it has come to ignore it; and it says nothing."""
    assert outcome(start, EARLY, loop) == (0, "0\n", "")


@both_loops
def test_ctrl_c_twice_in_a_users_coroutine_is_reported_once(start: Start, loop: str) -> None:
    """By the loop that it was raised through, and not by the loader's tasks again."""
    status, _, errors = outcome(start, TWICE, loop)
    assert status == -signal.SIGINT
    assert errors.startswith("Traceback")
    assert errors.endswith("\nKeyboardInterrupt\n")
    assert "unhandled" not in errors
    assert "Group" not in errors


@both_loops
def test_a_loop_in_a_daemon_thread_does_not_keep_the_program(start: Start, loop: str) -> None:
    """Its loader does not replace the workers that the program's end has ended."""
    assert outcome(start, DAEMON, loop) == (0, "", "")
