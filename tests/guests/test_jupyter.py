"""In Jupyter: a notebook in a real kernel, on the loop that the kernel runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support import is_alive, run_on, script, until

# Notebooks are executed by a program of their own, since zmq keeps threads and descriptors. It
# reports of each cell what it printed, what it wrote on stderr, and what it raised.
NOTEBOOK = """
import asyncio, json, sys
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from support import descendants, until

RUNNING = "running"

def texts(cell, name):
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == name)

def report(cell):
    errors = [o.ename for o in cell.outputs if o.output_type == "error"]
    return [texts(cell, "stdout"), texts(cell, "stderr"), errors]

async def execute(client):
    below = set()
    for index, cell in enumerate(client.nb.cells):
        running = asyncio.create_task(client.async_execute_cell(cell, index))
        if "# interrupt" in cell.source:
            await until(lambda: RUNNING in texts(cell, "stdout") or running.done())
            below |= set(descendants(client.km.provisioner.pid))
            await client.km.interrupt_kernel()
        await running
    return below

async def main():
    cells = [new_code_cell(source) for source in json.load(open(sys.argv[1]))]
    client = NotebookClient(new_notebook(cells=cells), timeout=40, allow_errors=True)
    async with client.async_setup_kernel():
        kernel = client.km.provisioner.pid
        below = await execute(client)
        left = descendants(kernel)
    print(json.dumps([[report(cell) for cell in cells], [kernel, *below], left]))

asyncio.run(main())
"""

SETUP = """
import time, warnings
warnings.filterwarnings("error", module="aioloader")
from aioloader import DataGroup, Loader

def load(item, arrays, seed):
    arrays["x"][...] = item

def numbers(length=32):
    return DataGroup(8, range(length), loader_arrays={"x": ((), "int32", "int32")})
"""

WORKERS = """
total = 0
async with Loader(load, numbers(), num_workers=2, end_at=("epoch", 1)) as loader:
    async for batch in loader:
        total += int(batch.arrays["x"].sum())
print(total)
"""

COROUTINES = """
import asyncio

async def fetch_and_load(item, arrays, seed):
    await asyncio.sleep(0.001)
    arrays["x"][...] = 2 * item

total = 0
async with Loader(fetch_and_load, numbers(), end_at=("epoch", 1)) as loader:
    async for batch in loader:
        total += int(batch.arrays["x"].sum())
print(total)
"""

ENDLESS = """
# interrupt
def slow(item, arrays, seed):
    if item >= 16:
        time.sleep(600)
    arrays["x"][...] = item

async with Loader(slow, numbers(), num_workers=2) as loader:
    async for batch in loader:
        if batch.batch_num == 1:
            print("running")
"""

AFTERWARDS = """
print(loader.get_state()["position"], loader._running is None)
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[int], list[int]]:
    """What became of the cells, the processes that there were, and those left in the end."""
    folder = tmp_path_factory.mktemp("notebook")
    cells = [SETUP, WORKERS, COROUTINES, ENDLESS, AFTERWARDS, WORKERS]
    (folder / "cells.json").write_text(json.dumps(cells))
    with script(folder, NOTEBOOK, str(folder / "cells.json")) as program:
        try:
            output, errors = program.communicate(timeout=55)
        finally:
            program.kill()
    assert program.returncode == 0, errors
    reports, processes, left = json.loads(output.splitlines()[-1])
    return reports, processes, left


Executed = tuple[list[Any], list[int], list[int]]


def test_cells_load_with_functions_that_cells_define(executed: Executed) -> None:
    """`async with` and `async for` at the top level of a cell; in workers and in coroutines."""
    setup, workers, coroutines, *_ = executed[0]
    assert setup == ["", "", []]
    assert workers == [f"{sum(range(32))}\n", "", []]
    assert coroutines == [f"{2 * sum(range(32))}\n", "", []]


def test_a_cell_that_is_interrupted_gives_its_loader_back_and_the_next_one_loads(
    executed: Executed,
) -> None:
    """Interrupted in the middle of an epoch, with both workers in a C sleep."""
    *_, endless, afterwards, again = executed[0]
    output, errors, (raised,) = endless
    assert (output, errors) == ("running\n", "")
    assert raised in ("KeyboardInterrupt", "CancelledError")
    assert afterwards == ["2 True\n", "", []]
    assert again == [f"{sum(range(32))}\n", "", []]


def test_no_process_is_left_under_the_kernel_nor_after_its_end(executed: Executed) -> None:
    """Neither workers nor what they are forked from."""
    _, processes, left = executed
    assert len(processes) >= 4  # the kernel, the fork server and two workers at least
    assert left == []
    run_on("asyncio", until(lambda: not any(map(is_alive, processes)), seconds=5))
