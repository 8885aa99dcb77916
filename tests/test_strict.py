"""Strict mode: it finds each kind of mistake that was made on purpose, and nothing else."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support import (
    ARRAYS,
    both_loops,
    digest_of,
    digests,
    run_on,
    script,
    simple_coroutine_load,
    simple_group,
    simple_load,
    until,
)

from aioloader import Loader
from aioloader._audit import POISON, FreeSlots
from aioloader._memory.arena import Arena, slot_bytes
from aioloader._memory.declaring import make_layouts
from aioloader._memory.segment import PrivateSegment
from aioloader.testing import Audit, strict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NEVER = 1e6  # seconds that no loop is blocked for, where a test is about something else


def calm(**options: Any) -> Any:
    """Strict mode that does not judge how busy the machine is."""
    return strict(max_block_seconds=NEVER, **options)


def found(error: pytest.ExceptionInfo[AssertionError]) -> list[str]:
    return str(error.value).split("\n- ")[1:]


async def fetch(item: int) -> int:
    await asyncio.sleep(0)
    return item


WAYS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "processes": (simple_load, {"num_workers": 2}),
    "thread": (simple_load, {"num_workers": 0}),
    "coroutines": (simple_coroutine_load, {}),
    "fetch": (simple_load, {"num_workers": 1, "fetch": fetch}),
    "validation": (simple_load, {"num_workers": 1, "validation": ("epoch", 1, simple_group(8))}),
}


def loader_of(way: str) -> Loader[Any]:
    load, options = WAYS[way]
    return Loader(load, simple_group(), end_at=("epoch", 2), **options)


# Nothing found ------------------------------------------------------------------------------------


@both_loops
@pytest.mark.parametrize("way", WAYS)
def test_a_sound_program_has_no_problems_and_the_same_bytes(way: str, loop: str) -> None:
    """Whoever loads: nothing is reported, and every digest is that of a run without."""
    plain = run_on(loop, digests(loader_of(way)))
    with calm() as audit:
        audited = run_on(loop, digests(loader_of(way)))
    assert audit.problems == audit.notes == []
    assert audited == plain


def test_slots_are_plain_where_strict_mode_is_off() -> None:
    """An arena has the same free list as ever, and so the same cost."""

    async def kinds() -> list[type]:
        return [type(make_arena()._free), type(make_arena().__dict__["_free"])]

    outside = asyncio.run(kinds())
    with calm():
        inside = asyncio.run(kinds())
    assert [kind.__name__ for kind in outside + inside] == ["deque"] * 2 + ["FreeSlots"] * 2


def test_batches_kept_after_the_end_stay_whole_and_are_noted() -> None:
    """It is allowed to keep them, so this is not an error."""

    async def keep() -> tuple[Any, str]:
        async with Loader(simple_load, simple_group(), num_workers=0, depth=3) as loader:
            first = await anext(loader)
            kept, digest = first.arrays["y"], digest_of(first)
            second = await anext(loader)
            del first
        assert digest_of(second) != digest
        return kept, second

    with calm() as audit:
        kept, second = asyncio.run(keep())
        assert np.asarray(kept).tolist() == [item / 4 for item in range(8)]
        assert np.asarray(second.arrays["y"]).tolist() == [item / 4 for item in range(8, 16)]
    (note,) = audit.notes
    assert "batch 0 of training group 0, epoch 0, batch 1 of training group 0, epoch 0" in note
    assert audit.problems == []


def test_several_loaders_in_several_threads_have_one_audit() -> None:
    """Loops of both kinds at once, two loaders on each."""
    results: dict[str, list[list[str]]] = {}

    async def both() -> list[list[str]]:
        return await asyncio.gather(digests(loader_of("thread")), digests(loader_of("processes")))

    def run(loop: str) -> None:
        results[loop] = run_on(loop, both())

    with calm() as audit:
        threads = [threading.Thread(target=run, args=(loop,)) for loop in ("asyncio", "uvloop")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert audit.problems == []
    assert results["asyncio"] == results["uvloop"]
    assert results["asyncio"][0] == results["asyncio"][1]


def test_an_inner_block_has_its_own_loaders() -> None:
    """What is found is told once, by the innermost block around it."""
    with calm() as outer:
        with pytest.raises(AssertionError) as error, calm():
            asyncio.run(give_twice())
        asyncio.run(digests(loader_of("thread")))
    assert len(found(error)) == 1
    assert outer.problems == []


def test_blocks_of_two_threads_do_not_judge_each_other() -> None:
    """What another thread's block holds at the moment is not left behind by this one."""
    entered, ended = threading.Event(), threading.Event()

    def other() -> None:
        with calm():
            entered.set()
            assert ended.wait(30)

    with calm() as audit:
        thread = threading.Thread(target=other, name="another block")
        thread.start()
        assert entered.wait(30)
    assert audit.problems == []
    ended.set()
    thread.join()


# Slots that are written to ------------------------------------------------------------------------


def make_arena(depth: int = 2) -> Arena:
    layouts = (make_layouts(ARRAYS, 8, "loader_arrays"),)
    segment = PrivateSegment(depth * slot_bytes(layouts))
    return Arena(segment, depth=depth, layouts=layouts, reclaim=gc.collect)


def behind(array: np.ndarray) -> Any:
    """Return a way to an array's memory that Python does not know of, as C code has it."""
    return (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)


async def use(arena: Arena) -> Any:
    """Lend a slot and give it back; returns a stale way into its array x."""
    slot = await arena.acquire(0, 8)
    stale = behind(slot.arrays["x"])
    index = slot.index
    slot.release()
    await until(lambda: arena.is_free(index))
    return stale


def test_a_free_slot_reads_as_garbage() -> None:
    """Whoever reads a batch that has ended sees it at once, and not by chance."""

    async def main() -> None:
        arena = make_arena()
        stale = await use(arena)
        assert set(stale.raw) == {POISON}
        arena.close()

    with calm():
        asyncio.run(main())


@pytest.mark.parametrize("last", [False, True], ids=["before the next loan", "at the end"])
def test_a_write_to_a_free_slot_is_found(last: bool) -> None:
    """The message has the slot, the byte, and the row and array that it is in."""

    async def main() -> None:
        arena = make_arena(1)
        stale = await use(arena)
        stale[5 * 32 + 1] = b"!"  # a row of x has 32 bytes
        if not last:
            await use(arena)
        arena.close()

    with pytest.raises(AssertionError) as error, calm():
        asyncio.run(main())
    (problem,) = found(error)
    assert "slot 0 was written to after its batch had ended" in problem
    assert "at byte 161 (row 5 of 'x')" in problem


def test_a_load_that_goes_on_writing_is_found() -> None:
    """A thread that `load` left behind writes to the first batch when that has ended."""
    kept: list[Any] = []
    free = threading.Event()

    def keeping(item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = arrays["y"][...] = item
        if item == 0:
            kept.append(behind(arrays["x"]))
        elif item == 8:
            assert free.wait(30)
            kept[0][0] = b"!"

    async def main() -> None:
        group = simple_group(16)
        options: Any = {"num_workers": 0, "depth": 2, "end_at": ("epoch", 1)}
        async with Loader(keeping, group, **options) as loader:
            with await anext(loader):
                pass
            arena = loader_arena(loader)
            await until(lambda: (gc.collect(), arena.is_free(0))[1])
            free.set()
            await anext(loader)

    with pytest.raises(AssertionError) as error, calm():
        asyncio.run(main())
    (problem,) = found(error)
    assert "slot 0 was written to" in problem
    assert "(row 0 of 'x')" in problem


def test_a_worker_that_keeps_its_rows_is_found(tmp_path: Path) -> None:
    """In worker processes nothing but strict mode can know that a row's array was kept."""
    flag = tmp_path / "free"

    def keeping(item: int, arrays: Any, seed: int | None, kept: list[Any] = []) -> None:  # noqa: B006
        arrays["x"][...] = arrays["y"][...] = item
        if item == 3:
            kept.append(arrays["x"])
        elif item == 8:
            while not flag.exists():
                time.sleep(0.001)
            kept[0][...] = -1

    async def main() -> None:
        options: Any = {"num_workers": 1, "depth": 2, "end_at": ("epoch", 1)}
        async with Loader(keeping, simple_group(16), **options) as loader:
            with await anext(loader):
                pass
            arena = loader_arena(loader)
            await until(lambda: (gc.collect(), arena.is_free(0))[1])
            flag.touch()
            await anext(loader)

    with pytest.raises(AssertionError) as error, calm():
        asyncio.run(main())
    (problem,) = found(error)
    assert "(row 3 of 'x')" in problem


def loader_arena(loader: Any) -> Arena:
    arena = loader._running._arena
    assert isinstance(arena, Arena)
    return arena


# Loans --------------------------------------------------------------------------------------------


async def give_twice() -> None:
    arena = make_arena()
    slot = await arena.acquire(0, 8)
    slot.release()
    await until(lambda: arena.is_free(0))
    arena._give(0)
    arena.close()


def test_a_slot_that_is_given_back_twice_is_found() -> None:
    """And told once."""
    with pytest.raises(AssertionError) as error, calm():
        asyncio.run(give_twice())
    assert found(error) == ["slot 0 was given back twice for one loan"]


def test_a_slot_that_is_lent_twice_is_found() -> None:
    """Which follows where it was given back while it was on loan."""

    async def main() -> None:
        arena = make_arena(1)
        slot = await arena.acquire(0, 8)
        arena._free.appendleft(0)
        again = await arena.acquire(0, 8)
        del slot, again
        arena.close()

    with pytest.raises(AssertionError) as error, calm():
        asyncio.run(main())
    assert "slot 0 was lent while it was on loan" in found(error)


def test_a_slot_that_is_lost_is_found() -> None:
    """Free slots and slots on loan are all that there are, at any time."""

    async def main() -> None:
        arena = make_arena(3)
        arena._free.remove(2)
        await use(arena)
        arena.close()

    with pytest.raises(AssertionError) as error, calm():
        asyncio.run(main())
    assert found(error) == ["1 slots are free and 1 are on loan, which should be 3 together"]


# Blocking -----------------------------------------------------------------------------------------


def block_until(condition: Callable[[], Any]) -> None:
    """Block the calling thread, and with it its loop."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@both_loops
def test_a_blocked_loop_is_found_once_with_its_stack(loop: str) -> None:
    """While it is blocked, in the words of a traceback; in the end with its duration."""
    seen: list[str] = []

    def ours(audit: Audit) -> list[str]:
        return [problem for problem in audit.problems if "in block_until" in problem]

    async def main(audit: Audit) -> None:
        one, other = (Loader(simple_load, simple_group(), num_workers=0) for _ in range(2))
        async with one, other:
            await anext(one)
            block_until(lambda: ours(audit))
            seen.extend(ours(audit))
            await until(lambda: ours(audit) != seen)

    with pytest.raises(AssertionError) as error, strict(max_block_seconds=0.5) as audit:
        run_on(loop, main(audit))
    (problem,) = ours(audit)
    assert problem in str(error.value)
    assert "the event loop was blocked for 0." in problem
    assert "in main\n" in problem
    assert "the event loop is blocked for 0." in seen[0]


def test_a_loop_that_computes_with_the_lock_held_is_found() -> None:
    """C code that lets no other thread run does not hide from the watching one."""

    async def main(audit: Audit) -> None:
        async with Loader(simple_load, simple_group(), num_workers=0) as loader:
            await anext(loader)
            await until(lambda: loader.statistics().ready == 3)
            # A thread that wants the lock, too, may get it first, and the loop goes on meanwhile.
            for _ in range(5):
                sum(range(15_000_000))
                await asyncio.sleep(0.05)
                if audit.problems:
                    break

    with (
        pytest.raises(AssertionError, match=r"in main\n    sum"),
        strict(max_block_seconds=0.05) as audit,
    ):
        asyncio.run(main(audit))


def test_a_loop_that_does_not_run_is_not_blocked() -> None:
    """Between two runs of a loop the program may do what it likes."""
    with strict(max_block_seconds=0.5) as audit, asyncio.Runner() as runner:
        loader = Loader(simple_load, simple_group(), num_workers=0)
        runner.run(loader.__aenter__())
        time.sleep(1.0)
        runner.run(loader.__aexit__(None, None, None))
        assert [problem for problem in audit.problems if "time.sleep" in problem] == []
        audit.problems.clear()


def test_what_strict_mode_does_itself_is_no_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes to fill a slot, and to look at it."""
    plain = FreeSlots._words

    def slow(self: Any, index: int) -> Any:
        time.sleep(0.3)
        return plain(self, index)

    async def main() -> None:
        async with Loader(simple_load, simple_group(), num_workers=0, depth=1) as loader:
            await anext(loader)

    with strict(max_block_seconds=0.1) as audit:
        with monkeypatch.context() as patch:
            patch.setattr(FreeSlots, "_words", slow)
            asyncio.run(main())
        assert [problem for problem in audit.problems if "in slow" in problem] == []
        audit.problems.clear()


def test_the_watching_thread_ends_with_the_last_loader_of_its_loop() -> None:
    """There is one for each loop, however many loaders that has."""

    def watching() -> int:
        return sum(thread.name == "aioloader-strict" for thread in threading.enumerate())

    async def main() -> list[int]:
        counts = [watching()]
        async with Loader(simple_load, simple_group(), num_workers=0):
            async with Loader(simple_load, simple_group(), num_workers=0):
                counts.append(watching())
            counts.append(watching())
        return [*counts, watching()]

    with calm():
        assert asyncio.run(main()) == [0, 1, 1, 0]


# What is left behind, and how it is told ----------------------------------------------------------


def test_a_thread_that_is_left_behind_is_found() -> None:
    """As `no_leaks` finds it, beside everything else."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="forgotten")
    with pytest.raises(AssertionError) as error, calm(settle_seconds=0.05):
        thread.start()
        asyncio.run(give_twice())
    end.set()
    thread.join()
    twice, left = found(error)
    assert "given back twice" in twice
    assert "left behind: {'threads': ['forgotten" in left
    assert "strict mode has found 2 problems:" in str(error.value)


def test_an_error_of_the_block_comes_with_the_problems_as_notes() -> None:
    """The program's own error is what it was."""
    with pytest.raises(KeyError, match="of its own") as error, calm():
        asyncio.run(give_twice())
        raise KeyError("of its own")
    assert error.value.__notes__ == ["strict mode: slot 0 was given back twice for one loan"]


def test_the_bound_is_checked() -> None:
    """Before anything begins."""
    with pytest.raises(ValueError, match="max_block_seconds=0"), strict(max_block_seconds=0):
        pass


# By the environment variable ----------------------------------------------------------------------

PROGRAM = """
import asyncio, logging, sys, threading, time
from aioloader import DataGroup, Loader

records = []
handler = logging.Handler(logging.INFO)
handler.emit = lambda record: records.append((record.levelname, record.getMessage()))
logging.getLogger("aioloader.strict").addHandler(handler)
logging.getLogger("aioloader.strict").setLevel(logging.INFO)

def load(item, arrays, seed):
    arrays["x"][...] = item

async def main(fault):
    group = DataGroup(4, range(16), loader_arrays={"x": ((), "int32", "int32")})
    options = {"num_workers": int(fault == "clean"), "end_at": ("batch", 1)}
    async with Loader(load, group, **options) as loader:
        batch = await anext(loader)
        if fault == "kept":
            return batch
        del batch
        if fault == "blocked":
            deadline = time.monotonic() + 20
            while not any("time.sleep" in text for _, text in records):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            while records[-1][0] != "WARNING":
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
        if fault == "given":
            loader._running._arena._give(loader._running._arena._free[0])
        if fault == "thread":
            loader._running._helper.submit(lambda: (begun.set(), end.wait()))
            while not begun.is_set():
                await asyncio.sleep(0.001)

begun, end = threading.Event(), threading.Event()
kept = asyncio.run(main(sys.argv[1]))
end.set()
blocks = ("the event loop", "that block")  # the machine may be busy, too
for level, message in records[-2:] if sys.argv[1] == "blocked" else records:
    if sys.argv[1] == "blocked" or not message.startswith(blocks):
        print(level, message.splitlines()[0])
"""

MESSAGES = {
    "clean": [],
    "kept": ["INFO kept after the loader closed, which is allowed: batch 0 of training group 0"],
    "blocked": ["ERROR the event loop is blocked for 0.", "WARNING that block took 0."],
    "given": ["ERROR slot "],
    "thread": ["ERROR left behind by a loader: {'threads': ['aioloader-helper_0"],
}


@pytest.mark.parametrize("fault", MESSAGES)
def test_the_environment_variable_has_problems_logged(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, as errors, in a program that knows nothing of strict mode."""
    monkeypatch.setenv("AIOLOADER_STRICT", "1")
    program = script(tmp_path, PROGRAM, fault)
    out, err = program.communicate(timeout=50)
    assert program.returncode == 0, err
    lines = out.splitlines()
    expected = MESSAGES[fault]
    assert len(lines) == len(expected), lines
    assert all(map(str.startswith, lines, expected)), lines
