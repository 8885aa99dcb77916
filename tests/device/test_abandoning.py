"""Iterations that are left early: nothing stays, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from support import script, until
from test_prefetching import BOTH, SyncInputs, until_blocking

from aioloader import prefetching_map

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

SIZES = pytest.mark.parametrize("size", [0, 1, 4])


class Left(Exception):
    pass


def is_over(inputs: Any) -> bool:
    """Tell whether the inputs are closed, and nobody holds an element, or draws."""
    threads = [thread.name for thread in threading.enumerate()]
    tasks = []
    with contextlib.suppress(RuntimeError):
        tasks = [task.get_name() for task in asyncio.all_tasks()]
    quiet = "prefetching_map" not in threads + tasks
    return inputs.closed == 1 and not inputs.alive and quiet


@SIZES
@BOTH
def test_a_for_loop_may_be_left_anywhere(kind: Any, size: int) -> None:
    """By break, by an exception, before the first element or at the last."""
    for left_at in (0, 1, 5):
        inputs = kind()
        for element in prefetching_map(inputs, buffer_size=size):
            if element.number == left_at:
                del element
                break
            del element
        until_blocking(lambda inputs=inputs: is_over(inputs))
        inputs = kind()
        with contextlib.suppress(Left):
            for element in prefetching_map(inputs, buffer_size=size):
                if element.number == left_at:
                    del element
                    raise Left
                del element
        until_blocking(lambda inputs=inputs: is_over(inputs))


@SIZES
@BOTH
async def test_an_async_for_loop_may_be_left_anywhere(kind: Any, size: int) -> None:
    """The same, and by cancellation."""
    for left_at in (0, 1, 5):
        for how in ("break", "raise", "cancel"):
            inputs = kind()
            with contextlib.suppress(Left, asyncio.CancelledError):
                await asyncio.ensure_future(_leave(inputs, size, left_at, how))
            await until(lambda inputs=inputs: is_over(inputs))


async def _leave(inputs: Any, size: int, left_at: int, how: str) -> None:
    async for element in prefetching_map(inputs, buffer_size=size):
        number = element.number
        del element
        if number == left_at:
            if how == "break":
                return
            if how == "raise":
                raise Left
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)


@SIZES
@BOTH
async def test_an_iterator_may_just_be_dropped(kind: Any, size: int) -> None:
    """Also when only the garbage collector finds it."""
    inputs = kind()
    stream = aiter(prefetching_map(inputs, buffer_size=size))
    await anext(stream)
    cycle = [stream]
    cycle.append(cycle)  # type: ignore[arg-type]
    del stream, cycle
    gc.collect()
    await until(lambda: is_over(inputs))
    if kind is SyncInputs:
        inputs = kind()
        iterator = iter(prefetching_map(inputs, buffer_size=size))
        next(iterator)
        del iterator
        await until(lambda: is_over(inputs))


@SIZES
@BOTH
async def test_closing_waits_until_the_inputs_are_closed(kind: Any, size: int) -> None:
    """`aclose` may be called at any time, twice, and beside who waits; then it is the end."""
    inputs = kind()
    stream: Any = aiter(prefetching_map(inputs, buffer_size=size))
    await stream.aclose()
    assert inputs.closed == 0  # never begun
    await anext(stream)
    await stream.aclose()
    assert (inputs.closed, len(inputs.alive)) == (1, 0)
    await until(lambda: is_over(inputs))  # a thread ends a little later
    await stream.aclose()
    assert await anext(stream, "end") == "end"


async def test_who_waits_is_told_that_it_was_closed() -> None:
    """Instead of waiting for ever."""
    gate = asyncio.Event()

    async def stuck() -> AsyncIterator[int]:
        yield 0
        await gate.wait()

    stream: Any = aiter(prefetching_map(stuck()))
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream, "end"))
    await asyncio.sleep(0)
    await stream.aclose()
    assert await waiting == "end"


@SIZES
def test_an_iterator_may_be_closed_by_hand(size: int) -> None:
    """`close`, as a generator has it."""
    inputs = SyncInputs()
    iterator: Any = iter(prefetching_map(inputs, buffer_size=size))
    next(iterator)
    iterator.close()
    iterator.close()
    assert list(iterator) == []
    until_blocking(lambda: is_over(inputs))


@SIZES
@BOTH
def test_a_loop_that_ends_ends_it_too(kind: Any, size: int) -> None:
    """While the iterator still exists."""
    inputs = kind(100)
    kept = []

    async def main() -> None:
        kept.append(aiter(prefetching_map(inputs, buffer_size=size)))
        await anext(kept[0])

    asyncio.run(main())
    kept.clear()
    until_blocking(lambda: is_over(inputs))


async def test_generators_are_closed_and_other_iterators_are_not() -> None:
    """A generator that was drawn from ahead of use is of no use to others."""

    class Own:
        closed = False

        def __iter__(self) -> Iterator[int]:
            return self  # type: ignore[return-value]

        def __next__(self) -> int:
            return 1

        def close(self) -> None:
            self.closed = True

    own, made = Own(), SyncInputs()
    generator = iter(made)
    for inputs in (own, generator):
        for _ in prefetching_map(inputs, buffer_size=1):  # type: ignore[call-overload]
            break
    await until(lambda: made.closed)
    await until(lambda: "prefetching_map" not in [t.name for t in threading.enumerate()])
    assert not own.closed


async def test_an_error_while_inputs_are_closed_is_raised() -> None:
    """By the loop over them, or by `aclose`."""

    class Resource:
        def __aiter__(self) -> Any:
            return self._Reader()

        class _Reader:
            left = 2

            async def __anext__(self) -> int:
                self.left -= 1
                if self.left < 0:
                    raise StopAsyncIteration
                return self.left

            async def aclose(self) -> None:
                raise OSError("not flushed")

    got = []
    with pytest.raises(OSError, match="not flushed"):
        async for element in prefetching_map(Resource()):
            got += [element]
    assert got == [1, 0]
    stream: Any = aiter(prefetching_map(Resource(), buffer_size=1))
    await anext(stream)
    with pytest.raises(OSError, match="not flushed"):
        await stream.aclose()


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize("blocks", [True, False], ids=["sync", "async"])
async def test_a_cancelled_anext_loses_nothing(blocks: bool, size: int) -> None:
    """The next call returns the element that was being waited for."""
    gate, open_gate = threading.Event(), asyncio.Event()

    def blocking() -> Iterator[int]:
        for number in range(8):
            gate.wait(20)
            yield number

    async def waiting() -> AsyncIterator[int]:
        for number in range(8):
            await open_gate.wait()
            yield number

    stream = aiter(prefetching_map(blocking() if blocks else waiting(), buffer_size=size))
    got = []
    for turn in range(12):
        if turn == 6:
            gate.set()
            open_gate.set()
        asking = asyncio.ensure_future(anext(stream))
        for _ in range(turn):
            await asyncio.sleep(0)
        if not asking.cancel():
            got.append(asking.result())
        else:
            with contextlib.suppress(asyncio.CancelledError):
                got.append(await asking)
    got += [element async for element in stream]
    assert got == [*range(8)]


@SIZES
def test_who_asks_after_the_close_need_not_wait(size: int) -> None:
    """Not even while the inputs have not returned yet."""
    gate = threading.Event()

    def stuck() -> Iterator[int]:
        yield 0
        gate.wait(20)

    iterator: Any = iter(prefetching_map(stuck(), buffer_size=size))
    next(iterator)
    iterator.close()
    assert list(iterator) == []
    assert not gate.is_set()
    gate.set()


PROGRAM = """
import sys, threading, time
import numpy as np, jax
from aioloader import prefetching_map

def slow():
    try:
        while True:
            yield np.ones(1 << 16)
            if sys.argv[1] == "stuck":
                time.sleep(3600)
    finally:
        print("closed")

kept = iter(prefetching_map(slow(), jax.devices()[0], buffer_size=2))
next(kept)
print("leaving", flush=True)
if sys.argv[2] == "raise":
    raise SystemExit(3)
"""


@pytest.mark.parametrize("how", ["return", "raise"])
@pytest.mark.parametrize("state", ["stuck", "ready"])
def test_a_program_may_end_in_the_middle(tmp_path: Path, state: str, how: str) -> None:
    """Silently; inputs that return are closed, and those that never do are not waited for."""
    program = script(tmp_path, PROGRAM, state, how)
    assert program.stdout is not None
    assert program.stdout.readline() == "leaving\n"
    started = time.monotonic()
    output = program.stdout.read()  # `communicate` would not see what the line above has read
    _, errors = program.communicate(timeout=40)
    assert time.monotonic() - started < 20  # and not an hour
    assert (program.returncode, errors) == (3 if how == "raise" else 0, "")
    assert output == ("closed\n" if state == "ready" else "")
