"""The fork server: one for all who need it, started with the first and ended with the last."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from executor_bench import ROWS, bench
from support import descendants, is_alive, until

from aioloader._executors import forkserver
from aioloader._executors.forkserver import ForkContext, server

if TYPE_CHECKING:
    from collections.abc import Callable

ON_LOOPS = ["asyncio"]
COLD_SERVER = True


def plain(item: Any, arrays: Any, seed: int | None) -> None:
    arrays["x"][...] = item


def server_pids() -> list[int]:
    """Return the pids of running fork servers of this process."""
    found = []
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as line:
            if "forkserver_main import serve" in line.read() and _parent(pid) == os.getpid():
                found.append(pid)
    return found


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as line:
        return int(line.read().rsplit(")", 1)[1].split()[1])


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def run_to_its_end(target: Callable[..., object], *args: object) -> int:
    """Run a function in a child of the server and return the child's exit code."""
    child = ForkContext().Process(target=target, args=args)
    child.start()
    child.join(20)
    code = child.exitcode
    child.close()
    assert code is not None
    return int(code)


def test_the_server_runs_for_as_long_as_somebody_uses_it() -> None:
    assert server_pids() == []
    with server.use():
        wait_for(server_pids)
        (pid,) = server_pids()
        with server.use():
            assert server_pids() == [pid]
        assert server_pids() == [pid]
    assert not is_alive(pid)


def test_the_server_ends_also_when_a_user_fails() -> None:
    with pytest.raises(ZeroDivisionError), server.use():
        raise ZeroDivisionError
    assert server_pids() == []


def test_children_end_as_they_end_and_that_is_known() -> None:
    """With an exit code, by a signal, or by an exception."""
    with server.use():
        assert run_to_its_end(int) == 0
        assert run_to_its_end(os._exit, 7) == 7
        assert run_to_its_end(exec, "import os; os.kill(os.getpid(), 9)") == -signal.SIGKILL
        assert run_to_its_end(exec, "import sys; sys.exit(5)") == 5


def test_what_is_preloaded_is_imported_once_for_all_children() -> None:
    """What cannot be imported is left to them, and what is there already costs nothing."""
    nine_without = "import os, sys; os._exit(0 if 'colorsys' in sys.modules else 9)"
    with server.use():
        assert run_to_its_end(exec, nine_without) == 9
        for module in ("colorsys", "no.such.module", "colorsys", "änderung"):
            server.preload(module)
        (pid,) = server_pids()
        for _ in range(2):
            assert run_to_its_end(exec, nine_without) == 0
        assert server_pids() == [pid]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not is_alive(pid))
        server.preload("colorsys")
        assert run_to_its_end(exec, nine_without) == 0
        assert server_pids() not in ([], [pid])


def test_children_collect_garbage_but_what_they_were_forked_with() -> None:
    """To look at that would copy the pages that they share."""
    collects = "gc.isenabled() and gc.get_freeze_count() > 1000"
    program = f"import gc, os; os._exit(0 if {collects} else 9)"
    with server.use():
        assert run_to_its_end(exec, program) == 0
        server.preload("colorsys")
        assert run_to_its_end(exec, program) == 0


def test_many_children_run_at_once() -> None:
    with server.use():
        children = [ForkContext().Process(target=os._exit, args=(n,)) for n in range(30)]
        for child in children:
            child.start()
        assert len({child.pid for child in children}) == 30
        for number, child in enumerate(children):
            child.join(20)
            assert child.exitcode == number
            child.close()


def test_the_parent_of_a_child_is_the_server() -> None:
    """The program has no children to reap, and cannot be confused by their signals."""
    with server.use():
        child = ForkContext().Process(target=time.sleep, args=(30,))
        child.start()
        (pid,) = server_pids()
        assert _parent(child.pid) == pid
        assert child.is_alive()
        child.kill()
        child.join(20)
        assert child.exitcode == -signal.SIGKILL
        child.close()


async def test_later_executors_share_the_server_of_those_that_run() -> None:
    """It is there already, so that they start in no time."""
    async with bench(plain) as one:
        await one.fill(range(ROWS))
        (pid,) = server_pids()
        async with bench(plain) as two:
            await two.fill(range(ROWS))
            assert server_pids() == [pid]
        assert server_pids() == [pid]
        await one.fill(range(ROWS))
    assert server_pids() == []


async def test_a_server_that_is_retained_outlives_executors() -> None:
    with server.use():
        wait_for(server_pids)
        (pid,) = server_pids()
        for _ in range(3):
            async with bench(plain) as b:
                await b.fill(range(ROWS))
            assert server_pids() == [pid]
    assert server_pids() == []


async def test_workers_that_die_are_replaced_by_the_same_server() -> None:
    async with bench(plain) as b:
        await b.fill(range(ROWS))
        (pid,) = server_pids()
        os.kill(b.executor.worker_pids[0], signal.SIGKILL)
        await b.fill(range(ROWS))
        assert server_pids() == [pid]


async def test_a_killed_server_is_replaced() -> None:
    """Its workers are not trusted any more; what they were doing is done again."""

    def load(item: int, arrays: Any, seed: int | None) -> None:
        time.sleep(0.01)
        arrays["x"][...] = item

    async with bench(load) as b:
        for _ in range(2):
            assert (await b.fill(range(ROWS))).x == list(range(ROWS))
            (pid,) = server_pids()
            workers = b.executor.worker_pids
            os.kill(pid, signal.SIGKILL)
            assert (await b.fill(range(ROWS))).x == list(range(ROWS))
            await until(lambda: server_pids() not in ([], [pid]))  # noqa: B023
            await until(lambda: not any(map(is_alive, workers)))  # noqa: B023


async def test_a_server_killed_while_nobody_uses_its_workers_is_replaced() -> None:
    with server.use():
        wait_for(server_pids)
        (pid,) = server_pids()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not is_alive(pid))
        async with bench(plain) as b:
            assert (await b.fill(range(ROWS))).x == list(range(ROWS))


async def test_a_server_killed_while_it_starts_is_replaced() -> None:
    """The system may be short of memory just then."""
    async with bench(plain) as b:
        await until(server_pids)
        os.kill(server_pids()[0], signal.SIGKILL)
        assert (await b.fill(range(ROWS))).x == list(range(ROWS))


async def test_an_interrupt_does_not_end_the_server() -> None:
    async with bench(plain) as b:
        await b.fill(range(ROWS))
        (pid,) = server_pids()
        os.kill(pid, signal.SIGINT)
        assert run_to_its_end(int) == 0
        assert server_pids() == [pid]
        assert b.executor.worker_deaths == 0


def test_no_descriptor_is_left_by_children() -> None:
    with server.use():
        run_to_its_end(int)
        before = os.listdir("/proc/self/fd")
        for _ in range(20):
            run_to_its_end(int)
        assert os.listdir("/proc/self/fd") == before


def test_a_child_has_no_descriptors_but_those_that_it_was_given() -> None:
    """Not the server's, and not those of other children."""
    with server.use():
        others = [ForkContext().Process(target=time.sleep, args=(30,)) for _ in range(4)]
        for other in others:
            other.start()
        code = "import os; os._exit(len(os.listdir('/proc/self/fd')) - 1)"
        codes = [run_to_its_end(exec, code) for _ in range(3)]
        for other in others:
            other.kill()
            other.join()
            other.close()
    assert len(set(codes)) == 1
    assert codes[0] <= 3 + 2  # the standard ones, and both ends of its life


async def test_workers_do_not_import_jax_nor_the_program() -> None:
    """They have numpy, and what the user's function brings along."""

    def load(item: Any, arrays: Any, seed: int | None) -> dict[str, Any]:
        main_file = getattr(sys.modules["__main__"], "__file__", None)
        return {"found": (sorted(sys.modules), main_file)}

    async with bench(load) as b:
        found = (await b.fill(range(ROWS))).extras["found"]
    for names, main_file in found:
        assert "numpy" in names
        roots = {name.partition(".")[0] for name in names}
        assert not roots & {"jax", "jaxlib", "pytest", "uvloop", "anyio"}
        assert main_file is None


def test_workers_use_one_thread_for_arithmetic_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There are as many workers as there should be threads; the program's own word counts."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "5")
    code = "import os; os._exit(int(os.environ['OMP_NUM_THREADS'] + os.environ['MKL_NUM_THREADS']))"
    with server.use():
        assert run_to_its_end(exec, code) == 15
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize("entry", [pathlib.Path("/nowhere"), b"/nowhere", None, ""], ids=repr)
def test_odd_entries_of_the_path_do_not_keep_it_from_starting(
    entry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notebooks put paths there that are no strings; the interpreter just passes over them."""
    monkeypatch.setattr(sys, "path", [*sys.path, entry])
    with server.use():
        assert run_to_its_end(int) == 0


def test_the_standard_librarys_server_is_left_alone() -> None:
    from multiprocessing import forkserver as standard

    before = vars(standard._forkserver).copy()  # type: ignore[attr-defined]
    with server.use():
        run_to_its_end(int)
        assert vars(standard._forkserver) == before  # type: ignore[attr-defined]


def test_a_server_that_cannot_start_is_no_users_burden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever could not use it does not count, and the next one starts it."""
    with monkeypatch.context() as patch:
        patch.setattr(forkserver.sys, "executable", "/nowhere/python")
        with pytest.raises(FileNotFoundError), server.use():
            pass
    with server.use():
        assert run_to_its_end(int) == 0
    assert server_pids() == []
