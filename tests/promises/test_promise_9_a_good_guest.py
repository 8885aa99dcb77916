"""Promise 9: nothing of the host program is changed, and the loader works where it is put."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from support import LOOPS, both_loops, digests, run_on, script, simple_group, simple_load

import aioloader
from aioloader import Loader

if TYPE_CHECKING:
    from pathlib import Path

CHECK = """
import json, multiprocessing, os, signal, sys, threading, time, asyncio
started = time.perf_counter()
import aioloader
seconds = time.perf_counter() - started
report = {"import": seconds, "jax": "jax" in sys.modules}

def host():
    return {
        "signals": [id(signal.getsignal(n)) for n in signal.valid_signals()],
        "start_method": multiprocessing.get_start_method(allow_none=True),
        "environment": dict(os.environ),
        "switch": sys.getswitchinterval(),
        "policy": str(type(asyncio.get_event_loop_policy())),
        "cwd": os.getcwd(),
        "hooks": [str(sys.excepthook), str(threading.excepthook)],
        "mask": [str(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "nice": os.nice(0),
        "path": list(sys.path),
    }

class Here:
    def method(self, item, arrays, seed):
        return load(item, arrays, seed)

def load(item, arrays, seed):
    arrays["x"][...] = item
    # Not by its whole name: workers are spared that module where nothing they get mentions it.
    rare = [name for name in sys.modules if name.endswith("_dtypes") and len(name) == 9]
    unwanted = ("jax", "anyio", "uvloop", "asyncio")
    return {"modules": rare + [name for name in unwanted if name in sys.modules],
            "worker": aioloader.is_worker(), "main": __name__, "argv": len(sys.argv)}

def by_name(item, arrays, seed):
    import numpy
    arrays["x"][...] = numpy.ones((), "bfloat16")
    return load(item, arrays, seed)

async def main(load, dtype="int32"):
    before = host()
    group = aioloader.DataGroup(4, range(16), loader_arrays={"x": ((), dtype, dtype)})
    async with aioloader.Loader(load, group, num_workers=2, end_at=("epoch", 1)) as loader:
        async for batch in loader:
            extras = dict(batch.additional)
    after = host()
    changed = [k for k in before if before[k] != after[k]]
    return {"changed": changed, "extras": {k: v[0] for k, v in extras.items()}}

import jax  # at the top of the program, as in any training script
k = 7
report["function"] = aioloader.run(main(load))
report["lambda"] = aioloader.run(main(lambda i, a, s: load(i, a, s) | {"k": k}))
report["method"] = aioloader.run(main(Here().method))
report["rare"] = aioloader.run(main(by_name, "bfloat16"))
report["parent_is_worker"] = aioloader.is_worker()
print(json.dumps(report))
"""


def test_the_host_is_as_it_was(tmp_path: Path) -> None:
    """Signals, start method, environment, hooks; and no jax in workers of a script that has it."""
    program = script(tmp_path, CHECK)
    output, errors = program.communicate(timeout=60)
    assert errors == ""
    report = json.loads(output)
    assert not report["jax"]
    assert not report["parent_is_worker"]
    for kind in ("function", "lambda", "method"):
        assert report[kind]["changed"] == []
        assert report[kind]["extras"]["modules"] == []
        assert report[kind]["extras"]["worker"]
    assert report["lambda"]["extras"]["k"] == 7
    assert report["rare"]["extras"]["modules"] == ["ml_dtypes"]  # then its dtypes have names


def test_importing_is_quick_and_imports_little() -> None:
    """No jax, no anyio and no numpy come with the bare import."""
    code = (
        "import sys, aioloader; "
        "print(len(sys.modules), 'jax' in sys.modules, 'numpy' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    modules, jax, numpy = output.stdout.split()
    assert (jax, numpy) == ("False", "False")
    assert int(modules) < 150


@both_loops
def test_it_works_off_the_main_thread(loop: str) -> None:
    """A loop in another thread, as in a server or a notebook."""
    outcome: list[list[str]] = []

    def work() -> None:
        outcome.append(run_on(loop, digests(_loader())))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert outcome == [run_on(loop, digests(_loader()))]


def _loader() -> Loader[int]:
    return Loader(simple_load, simple_group(), end_at=("epoch", 1), num_workers=1)


def test_two_loops_run_two_loaders_at_once() -> None:
    """Each in its thread, neither sees the other."""
    outcomes: dict[str, list[str]] = {}

    def work(name: str) -> None:
        outcomes[name] = run_on(name, digests(_loader()))

    threads = [threading.Thread(target=work, args=(name,)) for name in LOOPS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert outcomes["asyncio"] == outcomes["uvloop"]
    assert len(outcomes["uvloop"]) == 8


def test_a_loader_in_another_loop_is_an_error_that_says_so() -> None:
    """Not a hang, and not a strange error from underneath."""
    loader = _loader()

    def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(anext(loader))  # type: ignore[arg-type]

    async def main() -> None:
        async with loader:
            await asyncio.to_thread(elsewhere)
            assert (await anext(loader)).group_index == 0

    asyncio.run(main())


def test_using_it_outside_its_block_is_an_error_that_says_so() -> None:
    """Before it is entered, after it was left, and entered twice."""

    async def main() -> None:
        loader = _loader()
        with pytest.raises(RuntimeError, match="async with"):
            await anext(loader)
        async with loader:
            with pytest.raises(RuntimeError, match="entered already"):
                await loader.__aenter__()

    asyncio.run(main())


def test_the_loop_may_be_a_programs_own() -> None:
    """`run` sets no policy and leaves no loop behind."""
    policy = asyncio.get_event_loop_policy()
    assert len(aioloader.run(digests(_loader()))) == 8
    assert asyncio.get_event_loop_policy() is policy
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
