"""In a program with a life of its own: whatever it has set stays exactly as it set it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Start

# A program that has set all that it can, runs threads, has JAX up and a child that has ended and
# is not yet waited for. It compares itself before, in and after the whole life of loaders.
HOST = """
import asyncio, ctypes, faulthandler, gc, json, locale, logging, multiprocessing, os, random
import resource, signal, socket, subprocess, sys, threading, warnings
from multiprocessing import forkserver, resource_tracker
import jax, numpy as np
import aioloader
from aioloader import DataGroup, Loader
from aioloader.testing import no_leaks

class Policy(asyncio.DefaultEventLoopPolicy):
    pass

def noted(*args):
    noted.count += 1

def hook(*args):
    print("a hook was called with", args, file=sys.stderr)

noted.count = 0

def set_all():
    child = subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(7)"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, noted)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN if "ignore" in sys.argv else noted)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    multiprocessing.set_start_method("spawn")
    multiprocessing.set_forkserver_preload(["json"])
    asyncio.set_event_loop_policy(Policy())
    os.environ["HOST"] = "its own"
    os.chdir(os.environ["HOME"])
    os.umask(0o027)
    os.nice(1)
    sys.path.append("/not/there")
    sys.excepthook = sys.unraisablehook = threading.excepthook = hook
    sys.setrecursionlimit(2000)
    sys.setswitchinterval(0.004)
    random.seed(1)
    np.random.seed(1)
    np.seterr(over="ignore")
    gc.set_threshold(900, 11, 9)
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger("aioloader").setLevel(logging.INFO)
    threading.stack_size(1 << 20)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))
    faulthandler.enable()
    return child

def process_state():
    prctl = ctypes.CDLL(None).prctl
    asked = {}
    for name, number in (("death signal", 2), ("subreaper", 37)):
        answer = ctypes.c_int()
        prctl(number, ctypes.byref(answer))
        asked[name] = answer.value
    umask = os.umask(0)
    os.umask(umask)
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return asked | {
        "umask": umask,
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in limits},
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "affinity": os.sched_getaffinity(0),
        "scheduler": os.sched_getscheduler(0),
        "group": (os.getpgrp(), os.getsid(0)),
        "dumpable": prctl(3),
        "handlers": {n: signal.getsignal(n) for n in signal.valid_signals()},
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "timers": [signal.getitimer(timer) for timer in range(3)],
        "streams": [os.fstat(number)[:3] for number in range(3)],
    }

def interpreter_state():
    root, own = logging.getLogger(), logging.getLogger("aioloader")
    policy, server = asyncio.get_event_loop_policy(), forkserver._forkserver
    stack = threading.stack_size()
    threading.stack_size(stack)  # to ask for it has set it to the system's
    return {
        "start method": multiprocessing.get_start_method(allow_none=True),
        "fork server": (server._preload_modules, server._forkserver_pid),
        "resource tracker": resource_tracker._resource_tracker._pid,
        "policy": policy,
        "child watcher": getattr(policy, "_watcher", None),
        "path": (sys.path, list(sys.path), list(sys.path_hooks), list(sys.meta_path)),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook),
        "tracing": (sys.gettrace(), sys.getprofile(), threading.gettrace()),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "argv": list(sys.argv),
        "recursion": sys.getrecursionlimit(),
        "switching": sys.getswitchinterval(),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "logging": [(l.level, list(l.handlers), l.disabled, l.propagate) for l in (root, own)],
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), gc.get_debug()),
        "callbacks": list(gc.callbacks),
        "random": (random.getstate(), repr(np.random.get_state())),
        "numbers": (np.geterr(), repr(np.get_printoptions()), locale.setlocale(locale.LC_ALL)),
        "sockets": socket.getdefaulttimeout(),
        "stack": stack,
        "faults": faulthandler.is_enabled(),
        "jax": repr(sorted(jax.config.values.items())),
    }

def state():
    return process_state() | {f"python {k}": v for k, v in interpreter_state().items()}

def compare(moment, before):
    now = state()
    report[moment] = {k: [repr(before[k]), repr(now[k])] for k in before if before[k] != now[k]}

def load(item, arrays, seed):
    arrays["x"][...] = item

async def load_on_the_loop(item, arrays, seed):
    await asyncio.sleep(0)
    load(item, arrays, seed)

async def live(name, before, load, **options):
    group = DataGroup(4, range(64), loader_arrays={"x": ((), "int32", "int32")})
    seen = []
    async with Loader(load, group, end_at=("epoch", 1), depth=2, **options) as loader:
        async for batch in loader:
            seen += batch.arrays["x"].tolist()
            if batch.batch_num == 4:
                compare(f"in {name}", before)
                for pid in getattr(loader._executor, "worker_pids", [])[:1]:
                    os.kill(pid, signal.SIGKILL)
    compare(f"after {name}", before)
    assert seen == list(range(64)), seen

async def live_in_all_ways(name):
    before = state()
    await live(f"workers on {name}", before, load, num_workers=2)
    await live(f"a thread on {name}", before, load, num_workers=0)
    await live(f"coroutines on {name}", before, load_on_the_loop)

report = {}
jax.block_until_ready(jax.jit(lambda x: x + 1)(jax.numpy.zeros(8)))
done = threading.Event()
threads = [threading.Thread(target=done.wait, daemon=True) for _ in range(4)]
for thread in threads:
    thread.start()
child = set_all()
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
before = state()
loop.run_until_complete(live_in_all_ways("the program's loop"))
compare("after a loop of the program's own", before)
aioloader.run(live_in_all_ways("uvloop"))
compare("after run", before)
report["loop"] = asyncio.get_event_loop_policy().get_event_loop() is loop
report["wakeup"] = signal.set_wakeup_fd(-1)
report["threads"] = sum(thread.is_alive() for thread in threads)
report["child"] = child.wait()
report["noted"] = noted.count
done.set()
loop.close()
print(json.dumps(report))
"""


@pytest.mark.parametrize("ended_children", ["hear", "ignore"])
def test_a_whole_life_of_loaders_changes_nothing_that_the_program_has_set(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended_children: str
) -> None:
    """Workers, of which one is killed, a thread, coroutines; on two loops; warnings are errors."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setenv("HOME", str(tmp_path))
    program = start(HOST, ended_children)
    output, errors = program.communicate(timeout=50)
    assert errors == ""
    report = json.loads(output)
    assert report.pop("loop")
    assert report.pop("wakeup") == -1
    assert report.pop("threads") == 4
    assert report.pop("child") == 7  # nobody else has waited for it
    noted = report.pop("noted")
    assert (noted > 0) == (ended_children == "hear")
    assert len(report) == 14
    assert {moment: changed for moment, changed in report.items() if changed} == {}


# What a worker is started with goes through a pipe, here so late that nobody is left to read it.
BROKEN_PIPE = """
import asyncio, os, signal, time
from multiprocessing.queues import Queue
from aioloader import DataGroup, Loader
from support import until

feed = Queue._feed

def feed_late(*args):
    time.sleep(0.5)
    feed(*args)

def load(item, arrays, seed):
    arrays["x"][...] = item

async def main():
    group = DataGroup(4, range(64), loader_arrays={"x": ((), "int32", "int32")})
    async with Loader(load, group, end_at=("epoch", 1), num_workers=2) as loader:
        await until(lambda: len(loader._executor.worker_pids) == 2)
        Queue._feed = feed
        os.kill(loader._executor.worker_pids[0], signal.SIGKILL)
        print(sum([batch.arrays["x"].sum() async for batch in loader]))

signal.signal(signal.SIGPIPE, signal.SIG_DFL)
Queue._feed = feed_late
asyncio.run(main())
"""


def test_a_program_that_a_broken_pipe_ends_outlives_workers_that_are_killed_while_starting(
    start: Start,
) -> None:
    """Command-line programs set SIGPIPE to its default; a worker's pipe is no reason to end."""
    program = start(BROKEN_PIPE)
    output, errors = program.communicate(timeout=50)
    assert (program.returncode, output, errors) == (0, "2016\n", "")
