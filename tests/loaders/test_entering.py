"""Entering: all memory is there before the first batch, and a thread asks JAX what it has."""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import Any

import pytest
from support import both_loops, run_on, simple_group, simple_load, until

from aioloader import Loader
from aioloader._device import putting
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
async def test_leaving_waits_for_what_is_being_found_out(
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

    monkeypatch.setattr("aioloader._device.placement.prepare", prepare)
    async with loader_of(2, num_workers=0):
        await until(begun.is_set)
    assert done.is_set()


@pytest.mark.parametrize("num_workers", [0, 1])
async def test_what_jax_has_is_found_out_in_a_thread(
    monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    """Before the first batch if there is time for it, and not by the event loop."""
    asked: list[str] = []
    real = putting.prepare

    def prepare() -> None:
        asked.append(threading.current_thread().name)
        real()

    monkeypatch.setattr("aioloader._device.placement.prepare", prepare)
    putting._inner.cache_clear()
    async with loader_of(2, num_workers=num_workers):
        await until(lambda: putting._inner.cache_info().currsize == 1)
    assert [name.rpartition("_")[0] for name in asked] == ["aioloader-helper"]
