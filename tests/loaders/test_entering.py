"""Entering: all memory is there before the first batch, and JAX is, without blocking the loop."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from support import both_loops, run_on, simple_group, simple_load, until

from aioloader import Loader, ThreadExecutor
from aioloader._memory import segment as segments


def loader_of(depth: int, **options: Any) -> Loader[int]:
    """Return a loader whose slots are pages of their own."""
    return Loader(simple_load, simple_group(), depth=depth, end_at=("epoch", 1), **options)


async def test_the_memory_of_all_slots_is_reserved_once_a_loader_is_entered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever else has come of it: the workers' part of it and the slots, each page."""
    made: list[Any] = []
    real = segments.SharedSegment.__init__

    def noted(self: Any, *args: Any, **options: Any) -> None:
        made.append(self)
        real(self, *args, **options)

    monkeypatch.setattr(segments.SharedSegment, "__init__", noted)
    async with loader_of(64, num_workers=1):
        (segment,) = made
        assert os.fstat(segment.descriptor).st_blocks * 512 >= segment.nbytes >= 64 * 4096


@both_loops
def test_slots_that_cannot_be_reserved_are_an_error_on_entering(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when there is memory for all but them; the next loader is as good as any."""
    real = os.posix_fallocate

    def full(descriptor: int, start: int, nbytes: int) -> None:
        if start == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor, start, nbytes)

    async def main() -> int:
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full)
            with pytest.raises(MemoryError, match=r"MiB of shared memory.*No space left"):
                await loader_of(8, num_workers=2).__aenter__()
        async with loader_of(8, num_workers=2) as loader:
            return len([None async for _ in loader])

    assert run_on(loop, main()) == 8


@pytest.mark.parametrize("fails", [False, True])
async def test_entering_that_is_cancelled_waits_for_what_is_being_found_out(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Nothing of a loader that has been left goes on; and an error there is no loader's."""
    begun, done = threading.Event(), threading.Event()

    def prepare() -> None:
        begun.set()
        time.sleep(0.1)
        done.set()
        if fails:
            raise OSError("no device to ask")

    monkeypatch.setattr("aioloader._device.placement.is_started", lambda: False)
    monkeypatch.setattr("aioloader._device.placement.prepare", prepare)
    entering = asyncio.ensure_future(loader_of(2, num_workers=0).__aenter__())
    await until(begun.is_set)
    entering.cancel()
    await asyncio.wait([entering])
    assert (entering.cancelled(), done.is_set()) == (True, True)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("started", [False, True])
async def test_what_cannot_be_found_out_is_no_error_of_the_loader(
    monkeypatch: pytest.MonkeyPatch, started: bool, fails: bool
) -> None:
    """What JAX has is asked for before the first batch, once."""
    asked: list[str] = []

    def prepare() -> None:
        asked.append(threading.current_thread().name.rpartition("_")[0])
        if fails:
            raise OSError("no device to ask")

    monkeypatch.setattr("aioloader._device.placement.is_started", lambda: started)
    monkeypatch.setattr("aioloader._device.placement.prepare", prepare)
    async with loader_of(2, num_workers=0) as loader:
        assert asked == ["" if started else "aioloader-helper"]
        assert len([None async for _ in loader]) == 8


_JAX_IS_NOT_UP = """
import threading
import jax
import aioloader

asked = []

def noted(function):
    def call(*args, **options):
        asked.append(threading.current_thread().name)
        return function(*args, **options)
    return call

for name in ("local_devices", "default_backend", "devices"):
    setattr(jax, name, noted(getattr(jax, name)))

def load(item, arrays, seed):
    arrays["x"][...] = item

async def main():
    group = aioloader.DataGroup(4, range(8), loader_arrays={{"x": ((), "int32", "int32")}})
    options = {{"num_workers": {num_workers}, "end_at": ("epoch", 1)}}
    async with aioloader.Loader(load, group, **options) as loader:
        return [batch.arrays["x"].tolist() async for batch in loader]

assert aioloader.run(main()) == [[0, 1, 2, 3], [4, 5, 6, 7]]
print(asked[0])
"""


@pytest.mark.parametrize("num_workers", [0, 1])
def test_jax_is_started_by_a_thread(num_workers: int) -> None:
    """It may take seconds, in which the event loop goes on."""
    script = _JAX_IS_NOT_UP.format(num_workers=num_workers)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("aioloader-helper_0\n", "")


@pytest.mark.parametrize("fails", [False, True])
async def test_memory_of_any_kind_is_reserved_in_a_thread(fails: bool) -> None:
    """`reserve` of an executor's own segment may block; what it raises is raised by entering."""
    asked: list[str] = []

    class Reserved:
        def __init__(self, nbytes: int) -> None:
            self.nbytes = nbytes
            self.buffer: Any = bytearray(nbytes)

        def reserve(self) -> None:
            asked.append(threading.current_thread().name)
            if fails:
                raise MemoryError("the room is taken")

        def close(self) -> None:
            self.buffer = None

    def executor(work: Any) -> Any:
        threads = ThreadExecutor(work)
        threads.allocate = Reserved  # type: ignore[assignment]
        return threads

    loader = loader_of(2, executor=executor)
    if fails:
        with pytest.raises(MemoryError, match="the room is taken"):
            await loader.__aenter__()
    else:
        async with loader:
            assert len([None async for _ in loader]) == 8
    assert asked == ["aioloader-helper_0"]
