"""Orbax: iterators in checkpoints, beside a model, restored in another program."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support import script

from aioloader import MapDataset, StateError

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import asyncio, json, sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from aioloader import MapDataset

v1 = ocp.experimental.v1
folder, what = Path(sys.argv[1]), sys.argv[2]

async def fetch(x):
    await asyncio.sleep(0)
    return x

def drawn(numbers):
    return numbers.to_iter_dataset().random_map(lambda x, rng: x + int(rng.integers(1000)))

numbers = MapDataset.range(40).seed(3).shuffle()
plain, awaited = drawn(numbers), drawn(numbers.map(fetch))
model = {"w": jax.numpy.arange(4.0)}

def report(**values):
    print(json.dumps(values))

async def run(path):
    iterator = aiter(awaited)
    seen = [await anext(iterator) for _ in range(7)]
    saving = v1.save_checkpointables_async(path, {"data": iterator, "model": model})
    more = [await anext(iterator) for _ in range(4)]
    await asyncio.to_thread(saving.result)
    await iterator.aclose()
    report(seen=seen, more=more)

async def resume(path):
    iterator = aiter(awaited)
    loaded = await asyncio.to_thread(
        v1.load_checkpointables, path, {"data": iterator, "model": model}
    )
    rest = [x async for x in iterator]
    report(rest=rest, w=np.asarray(loaded["model"]["w"]).tolist())

def run_plain(path):
    iterator = iter(plain)
    seen = [next(iterator) for _ in range(7)]
    v1.save_checkpointables(path, {"data": iterator, "model": model})
    more = [next(iterator) for _ in range(4)]
    iterator.close()
    report(seen=seen, more=more)

def resume_plain(path):
    iterator = iter(plain)
    loaded = v1.load_checkpointables(path, {"data": iterator, "model": model})
    report(rest=list(iterator), w=np.asarray(loaded["model"]["w"]).tolist())

if what == "save":
    run_plain(folder / "plain")
    asyncio.run(run(folder / "on a loop"))
else:
    resume_plain(folder / "plain")
    asyncio.run(resume(folder / "on a loop"))
"""


def _run(tmp_path: Path, what: str) -> list[dict[str, Any]]:
    program = script(tmp_path, PROGRAM, str(tmp_path), what)
    output, errors = program.communicate(timeout=100)
    assert program.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()[-2:]]


@pytest.mark.timeout(240)
def test_a_run_goes_on_in_another_program(tmp_path: Path) -> None:
    """With the element after the last delivered one before the model was saved; on a loop, too."""
    both = zip(_run(tmp_path, "save"), _run(tmp_path, "restore"), strict=True)
    for (before, after), how in zip(both, ["plain", "on a loop"], strict=True):
        files = [path.name for path in (tmp_path / how).rglob("process_*-of-*")]
        assert files == ["process_0-of-1.json"]
        assert after["w"] == [0, 1, 2, 3]
        assert len(before["seen"] + after["rest"]) == 40
        assert after["rest"][:4] == before["more"]


class _Directory:
    """A directory that somebody else is creating."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def await_creation(self) -> Path:
        await asyncio.sleep(0)
        self.path.mkdir(parents=True)
        return self.path


async def test_saved_is_the_moment_of_the_call(tmp_path: Path) -> None:
    """Not that of the writing, which may be much later."""
    iterator = iter(MapDataset.range(9).to_iter_dataset())
    next(iterator)
    writing = await iterator.save(_Directory(tmp_path / "a"))
    next(iterator)
    await writing
    (file,) = (tmp_path / "a").iterdir()
    assert json.loads(file.read_text()) == {"next_index": 1}
    reading = await iterator.load(tmp_path / "a")
    assert next(iterator) == 2
    await reading
    assert next(iterator) == 1


async def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    """With its path; the iterator stays where it is."""
    iterator = iter(MapDataset.range(9).to_iter_dataset())
    assert issubclass(StateError, ValueError)
    with pytest.raises(StateError, match=str(tmp_path)):
        await (await iterator.load(tmp_path))
    for text in ("", "[]", '{"next_index": '):
        (tmp_path / "process_0-of-1.json").write_text(text)
        with pytest.raises(StateError, match="damaged"):
            await (await iterator.load(tmp_path))
    assert next(iterator) == 0


def test_a_program_without_jax_saves_and_stays_without_it(tmp_path: Path) -> None:
    """It is one process, as far as that is concerned."""
    code = (
        "import asyncio, sys, pathlib\n"
        "from aioloader import MapDataset\n"
        "class Directory:\n"
        "    async def await_creation(self): return pathlib.Path(sys.argv[1])\n"
        "async def main():\n"
        "    iterator = iter(MapDataset.range(3).map(abs).to_iter_dataset())\n"
        "    await (await iterator.save(Directory()))\n"
        "    await (await iterator.load(sys.argv[1]))\n"
        "    assert list(iterator) == [0, 1, 2]\n"
        "asyncio.run(main())\n"
        "assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["process_0-of-1.json"]
