"""Promise 3: whatever the end, no process, memory, file, task, thread or descriptor stays."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import anyio
import pytest
from support import (
    both_loops,
    descendants,
    is_alive,
    run_on,
    script,
    simple_coroutine_load,
    simple_group,
    simple_load,
    until,
)

from aioloader import Loader
from aioloader.testing import no_leaks

WAYS: dict[str, dict[str, Any]] = {
    "processes": {"load": simple_load, "num_workers": 2},
    "thread": {"load": simple_load, "num_workers": 0},
    "coroutines": {"load": simple_coroutine_load},
}


async def _use(ending: str, load: Any, **options: Any) -> None:
    loader = Loader(load, simple_group(), end_at=("epoch", 1), **options)
    async with loader:
        async for batch in loader:
            if ending == "break" and batch.batch_num == 2:
                break
            if ending == "exception" and batch.batch_num == 2:
                raise KeyError("the program's own")


@both_loops
@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("ending", ["normal", "break", "exception"])
def test_nothing_stays_after_an_end(loop: str, way: str, ending: str) -> None:
    """A census inside the loop, right behind the block."""

    async def main() -> None:
        with no_leaks():
            try:
                await _use(ending, **WAYS[way])
            except KeyError as error:
                assert error.args == ("the program's own",)

    run_on(loop, main())


@both_loops
@pytest.mark.parametrize("way", list(WAYS))
def test_nothing_stays_after_a_cancellation_at_any_moment(loop: str, way: str) -> None:
    """Cancelled at ever later moments of entering, reading and leaving."""

    async def main() -> None:
        finished = False
        with no_leaks():
            for step in range(60):
                with anyio.move_on_after(step * step * 4e-4) as scope:
                    await _use("normal", **WAYS[way])
                if not scope.cancelled_caught:
                    finished = True
                    break
        assert finished

    run_on(loop, main())


def test_a_loader_can_be_entered_again_and_again() -> None:
    """With new workers each time, from the start or from where it was left."""

    async def main() -> None:
        loader = Loader(simple_load, simple_group(), end_at=("epoch", 1))
        with no_leaks():
            for _ in range(3):
                async with loader:
                    assert [b.group_index async for b in _few(loader, 3)] == [0, 1, 2]
            loader.set_state(loader.get_state())
            async with loader:
                assert [b.group_index async for b in _few(loader, 9)] == [3, 4, 5, 6, 7]

    run_on("asyncio", main())


async def _few(loader: Loader[Any], count: int) -> Any:
    async for batch in loader:
        yield batch
        count -= 1
        if count == 0:
            return


PROGRAM = """
import asyncio, os, sys, time
from aioloader import DataGroup, Loader, run

def load(item, arrays, seed):
    time.sleep(0.002)
    arrays["x"][...] = item

async def main():
    group = DataGroup(8, range(10**6), loader_arrays={"x": ((1000,), "int32", "int32")})
    async with Loader(load, group, num_workers=2) as loader:
        async for batch in loader:
            if batch.batch_num == 5:
                print("running", flush=True)
                if "unclosed" in sys.argv:
                    os.environ["x"] = str(id(loader))
                    raise SystemExit(0)
                if "interrupt" in sys.argv:
                    raise KeyboardInterrupt

async def unclosed():
    group = DataGroup(8, range(10**6), loader_arrays={"x": ((1000,), "int32", "int32")})
    global kept
    kept = Loader(load, group, num_workers=2)
    await kept.__aenter__()
    await anext(kept)
    print("running", flush=True)

run(unclosed() if "never" in sys.argv else main())
"""


def _left_in(directory: Path) -> set[str]:
    return {str(path) for path in directory.rglob("*")}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_program_that_is_killed_leaves_nothing(tmp_path: Path, number: int) -> None:
    """No process after two seconds, no shared memory, no file, and nothing on stderr."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    os.environ["TMPDIR"], old = str(temporary), os.environ.get("TMPDIR")
    memory = _left_in(Path("/dev/shm"))
    try:
        program = script(tmp_path, PROGRAM)
    finally:
        os.environ.pop("TMPDIR")
        if old is not None:
            os.environ["TMPDIR"] = old
    assert program.stdout is not None
    assert program.stdout.readline() == "running\n"
    below = descendants(program.pid)
    assert len(below) >= 2
    program.send_signal(number)
    _, errors = program.communicate(timeout=10)
    run_on("asyncio", until(lambda: not any(map(is_alive, below)), seconds=2))
    assert errors == ""
    assert _left_in(Path("/dev/shm")) <= memory
    assert _left_in(temporary) == set()
    assert tempfile.gettempdir()


@pytest.mark.parametrize("ending", ["unclosed", "interrupt", "never"])
def test_a_program_that_ends_without_closing_does_not_hang(tmp_path: Path, ending: str) -> None:
    """It exits by itself, and so do its workers."""
    program = script(tmp_path, PROGRAM, ending)
    assert program.stdout is not None
    assert program.stdout.readline() == "running\n"
    below = descendants(program.pid)
    try:
        program.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        program.kill()
        raise
    run_on("asyncio", until(lambda: not any(map(is_alive, below)), seconds=2))
