"""Enlarging: a session lends larger slots from some moment on, and its workers stay."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from session_bench import Feed, following, tickets
from support import until

from aioloader._engine.session import Session
from aioloader._engine.stages import SessionSpec
from aioloader._executors.process import ProcessExecutor
from aioloader._memory.declaring import make_layouts
from aioloader._memory.segment import SharedSegment
from aioloader.protocols import Work
from aioloader.testing import strict

if TYPE_CHECKING:
    import numpy as np

SMALL, LARGE = (make_layouts({"x": ((n,), "int64", "int64")}, 1, "a") for n in (100, 300_000))
DEPTH = 3


def fill(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
    arrays["x"][...] = item
    return {"pid": os.getpid(), "count": arrays["x"].size}


async def workers(count: int) -> tuple[Session, Feed]:
    """Return a session of one-row batches, which knows both layouts and lends the small one."""
    feed = Feed()
    feed.key = 0
    feed.layout_key = lambda ticket: feed.key
    work = Work(fill, (SMALL, LARGE), num_workers=2)
    spec = SessionSpec(feed, ProcessExecutor(work), (SMALL,), DEPTH, True, lambda: None)
    session = Session(spec, iter(tickets(count, rows=1)))
    await session.open()
    return session, feed


async def read(session: Session) -> tuple[np.ndarray, int]:
    """Return the next array, and which process has filled it."""
    outcome = await following(session)
    assert outcome is not None
    assert outcome.value is not None
    (pid,) = outcome.value.extras["pid"]
    return outcome.value.placed.arrays["x"], pid


async def test_slots_grow_while_the_workers_stay() -> None:
    """What is under way comes in small slots, what begins later in large ones, none is lost."""
    with strict():
        session, feed = await workers(40)
        pids, sizes, kept = set(), [], []
        for number in range(40):
            array, pid = await read(session)
            assert (array == number).all()
            pids.add(pid)
            sizes.append(array.size)
            if number == 10:
                kept.append(array)
                await session.enlarge((SMALL, LARGE))
                feed.key = 1
            del array
        assert sizes == sorted(sizes)
        assert set(sizes) == {100, 300_000}
        assert len(pids) <= 2
        await until(lambda: session.counts[3] == 0)
        await session.aclose()
        assert (kept.pop() == 10).all()


async def test_new_workers_know_the_larger_slots_too() -> None:
    """Those that take the place of dead ones."""
    session, feed = await workers(60)
    await session.enlarge((SMALL, LARGE))
    feed.key = 1
    for number in range(60):
        array, pid = await read(session)
        assert (array == number).all()
        if number == 20:
            os.kill(pid, 9)
        del array
    await session.aclose()


async def test_a_session_without_memory_for_it_goes_on_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, _ = await workers(30)
    huge = make_layouts({"x": ((1 << 50,), "uint8", "uint8")}, 1, "a")
    with pytest.raises(MemoryError, match="are available"):
        await session.enlarge((SMALL, huge))
    for number in range(30):
        array, _ = await read(session)
        assert (array == number).all()
        del array
    await session.aclose()


async def test_closing_waits_for_what_is_being_enlarged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is not given back while a thread extends it."""
    session, _ = await workers(30)
    go_on, grow = threading.Event(), SharedSegment.grow

    def slowly(segment: SharedSegment, nbytes: int) -> None:
        go_on.wait(20)
        assert segment.buffer is not None
        grow(segment, nbytes)

    monkeypatch.setattr(SharedSegment, "grow", slowly)
    enlarging = asyncio.ensure_future(session.enlarge((SMALL, LARGE)))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(session.aclose())
    assert session._driver is not None
    await until(session._driver.done)
    await asyncio.wait([closing], timeout=0.05)
    assert not closing.done()
    go_on.set()
    await asyncio.gather(enlarging, closing)


async def test_strict_mode_looks_at_outgrown_slots_too() -> None:
    with pytest.raises(AssertionError, match="was written to after its batch had ended"), strict():
        session, feed = await workers(20)
        for _ in range(20):
            await read(session)
        await session.enlarge((SMALL, LARGE))
        feed.key = 1
        await until(lambda: session._outgrown[0].on_loan == 0)
        assert session._segment is not None
        session._segment.buffer[5] = 1
        await session.aclose()
