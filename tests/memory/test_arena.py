"""The arena: slots on loan for as long as anything reads them, and never more than there are."""

from __future__ import annotations

import asyncio
import gc
import queue
import random
import threading
import types
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import both_loops, run_on, until

from aioloader._memory import arena as module
from aioloader._memory.arena import PAGE, Arena, ArenaSlot, slot_bytes
from aioloader._memory.declaring import make_layouts
from aioloader._memory.layout import layout_bytes
from aioloader._memory.segment import PrivateSegment

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 4
SMALL = make_layouts({"x": ((), "int64", "int32"), "y": ((3,), "uint8", "uint8")}, ROWS, "a")
LARGE = make_layouts({"z": ((5000,), "float32", "float32")}, 2, "a")


def nothing() -> None:
    return None


def make_arena(
    depth: int = 2, *, layouts: Any = (SMALL, LARGE), reclaim: Callable[[], object] = nothing
) -> Arena:
    segment = PrivateSegment(depth * slot_bytes(layouts))
    return Arena(segment, depth=depth, layouts=layouts, reclaim=reclaim)


async def take_all(arena: Arena) -> list[ArenaSlot]:
    with anyio.fail_after(10):
        return [await arena.acquire(0, ROWS) for _ in range(arena.depth)]


# Slots --------------------------------------------------------------------------------------------


async def test_slots_lie_page_by_page_and_do_not_overlap() -> None:
    """A slot has room for the largest of the layouts, so that any batch fits into any slot."""
    arena = make_arena(3)
    slots = await take_all(arena)
    assert slot_bytes((SMALL, LARGE)) == -(-2 * 5000 * 4 // PAGE) * PAGE
    assert [slot.offset for slot in slots] == [k * slot_bytes((SMALL, LARGE)) for k in range(3)]
    for number, slot in enumerate(slots):
        for array in slot.arrays.values():
            array[...] = number
    for number, slot in enumerate(slots):
        assert all((array == number).all() for array in slot.arrays.values())
    arena.close()


def test_a_slot_takes_whole_pages_and_at_least_one() -> None:
    empty = make_layouts({"x": ((0,), "int8", "int8")}, 4, "a")
    exact = make_layouts({"x": ((PAGE,), "int8", "int8")}, 1, "a")
    more = make_layouts({"x": ((PAGE + 1,), "int8", "int8")}, 1, "a")
    assert [slot_bytes((layouts,)) for layouts in (empty, exact, more)] == [PAGE, PAGE, 2 * PAGE]


async def test_a_slot_has_the_layout_that_was_asked_for() -> None:
    arena = make_arena()
    small, large = await arena.acquire(0, ROWS), await arena.acquire(1, 2)
    assert (small.layout_key, small.layouts) == (0, SMALL)
    assert (large.layout_key, large.layouts) == (1, LARGE)
    assert {k: v.shape for k, v in small.arrays.items()} == {"x": (4,), "y": (4, 3)}
    assert {k: v.shape for k, v in large.arrays.items()} == {"z": (2, 5000)}
    arena.close()


async def test_a_short_batch_is_the_first_rows_of_a_whole_one() -> None:
    """Its arrays lie where they always lie; those rows that it lacks are not in view."""
    arena = make_arena(1)
    whole = await arena.acquire(0, ROWS)
    whole.arrays["x"][...] = [1, 2, 3, 4]
    whole.release()
    with anyio.fail_after(10):
        short = await arena.acquire(0, 3)
    assert short.rows == 3
    assert {k: v.shape for k, v in short.arrays.items()} == {"x": (3,), "y": (3, 3)}
    assert short.arrays["x"].tolist() == [1, 2, 3]
    assert short.layouts["y"].offset == SMALL["y"].offset
    arena.close()


async def test_the_arrays_of_a_slot_are_writable_and_their_mapping_is_not() -> None:
    arena = make_arena()
    arrays: Any = (await arena.acquire(0, ROWS)).arrays
    arrays["x"][0] = 1
    with pytest.raises(TypeError):
        arrays["x"] = np.zeros(4)
    del arrays
    arena.close()


async def test_a_released_slot_gives_no_more_arrays() -> None:
    """What it said of itself can still be asked; releasing it again is harmless."""
    arena = make_arena()
    slot = await arena.acquire(0, ROWS)
    assert repr(slot) == "<ArenaSlot 0: 4 rows, on loan>"
    slot.release()
    slot.release()
    assert repr(slot) == "<ArenaSlot 0: 4 rows, released>"
    for attribute in ("arrays", "hold"):
        with pytest.raises(RuntimeError, match="slot 0 has been released"):
            getattr(slot, attribute)
    arena.close()


# Coming back --------------------------------------------------------------------------------------


async def test_a_slot_comes_back_when_its_last_view_dies() -> None:
    """Not when the batch is let go of, and not before views of views are gone."""
    arena = make_arena()
    slot = await arena.acquire(0, ROWS)
    whole = slot.arrays["y"]
    part: Any = whole[1:].T[::2].ravel()[:1].reshape(1, 1)
    flat: Any = slot.arrays["y"].reshape(-1)[2:5]
    slot.release()
    del whole
    await asyncio.sleep(0.01)
    assert (arena.on_loan, arena.is_free(0)) == (1, False)
    del part
    await asyncio.sleep(0.01)
    assert arena.on_loan == 1
    del flat
    await until(lambda: arena.is_free(0))
    assert arena.on_loan == 0
    arena.close()


@pytest.mark.parametrize(
    "hold",
    [
        lambda slot: slot.hold,
        lambda slot: memoryview(slot.arrays["x"]),
        lambda slot: slot.arrays["x"][0, ...],
        lambda slot: iter(slot.arrays["x"]),
        lambda slot: {"nested": [slot.arrays["x"].view("uint8")]},
        lambda slot: np.frombuffer(slot.arrays["x"], "uint8"),
    ],
    ids=["hold", "memoryview", "0-d view", "iterator", "nested view", "buffer of a view"],
)
async def test_whatever_reads_a_slot_keeps_it(hold: Callable[[ArenaSlot], Any]) -> None:
    arena = make_arena(1)
    slot = await arena.acquire(0, ROWS)
    held = hold(slot)
    slot.release()
    gc.collect()
    await asyncio.sleep(0.01)
    assert arena.on_loan == 1, held
    del held
    await until(lambda: arena.on_loan == 0)
    arena.close()


async def test_a_slot_comes_back_from_a_reference_cycle_when_it_is_collected() -> None:
    arena = make_arena(1)
    slot = await arena.acquire(0, ROWS)
    cycle: list[Any] = [slot.arrays["x"]]
    cycle.append(cycle)
    slot.release()
    gc.disable()
    try:
        del cycle
        await asyncio.sleep(0.01)
        assert arena.on_loan == 1
    finally:
        gc.enable()
    gc.collect()
    await until(lambda: arena.on_loan == 0)
    arena.close()


async def test_a_slot_comes_back_from_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last view may die anywhere; a feeder that waits is woken all the same."""
    monkeypatch.setattr(module, "_FIRST_WAIT_SECONDS", 3600.0)
    arena = make_arena(1)
    slot = await arena.acquire(0, ROWS)
    handed: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def end_it() -> None:
        thing = handed.get()
        del thing

    thread = threading.Thread(target=end_it)
    thread.start()
    array = slot.arrays["x"]
    slot.release()
    waiting = asyncio.ensure_future(arena.acquire(0, ROWS))
    await until(lambda: arena.starved)
    handed.put(array)
    del array
    with anyio.fail_after(10):
        assert (await waiting).index == 0
    thread.join()
    arena.close()


async def test_no_slot_is_lent_while_any_thread_reads_it() -> None:
    """Threads check their batches and let go of them in any order: none sees another's bytes."""
    arena = make_arena(4)
    handed: queue.SimpleQueue[Any] = queue.SimpleQueue()
    torn: list[object] = []

    def check() -> None:
        kept: list[tuple[int, np.ndarray]] = []
        draw = random.Random(threading.get_ident())
        while (got := handed.get()) is not None:
            kept.append(got)
            del got
            draw.shuffle(kept)
            while kept and draw.random() < 0.8:
                number, array = kept.pop()
                if not (array == number).all():
                    torn.append((number, array.copy()))
                del array

    threads = [threading.Thread(target=check) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1500):
        # A batch may stay with a thread until it gets another one: it is sent something else.
        with anyio.move_on_after(0.02) as scope:
            slot = await arena.acquire(0, ROWS)
        if scope.cancelled_caught:
            for _ in threads:
                handed.put((-1, np.full(1, -1)))
            continue
        slot.arrays["x"][...] = number
        handed.put((number, slot.arrays["x"]))
        slot.release()
    for _ in threads:
        handed.put(None)
    for thread in threads:
        thread.join()
    assert torn == []
    del slot
    await until(lambda: arena.on_loan == 0)
    arena.close()


@both_loops
def test_a_slot_that_ends_after_its_loop_ends_in_silence(loop: str) -> None:
    """Batches may be kept beyond the loop that made them; there is nobody left to tell."""

    async def main() -> Any:
        arena = make_arena()
        slot = await arena.acquire(0, ROWS)
        slot.arrays["x"][...] = 5
        arena.close()
        return slot.arrays["x"]

    array = run_on(loop, main())
    gc.collect()
    assert array.tolist() == [5] * ROWS
    del array  # an exception in here would be reported, and reports are errors
    gc.collect()


async def test_arrays_kept_after_closing_stay_whole() -> None:
    arena = make_arena()
    kept = [slot.arrays["x"] for slot in await take_all(arena)]
    for number, array in enumerate(kept):
        array[...] = number
    arena.close()
    del arena
    gc.collect()
    assert [array.tolist() for array in kept] == [[0] * ROWS, [1] * ROWS]


# Waiting ------------------------------------------------------------------------------------------


async def test_there_are_never_more_slots_than_depth() -> None:
    arena = make_arena(3)
    slots = await take_all(arena)
    assert sorted(slot.index for slot in slots) == [0, 1, 2]
    with anyio.move_on_after(0.02) as scope:
        await arena.acquire(0, ROWS)
    assert scope.cancelled_caught
    assert repr(arena) == "<Arena: 3 of 3 slots on loan>"
    arena.close()


async def test_a_returning_slot_wakes_the_feeder(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not have to wait until it next looks for itself."""
    monkeypatch.setattr(module, "_FIRST_WAIT_SECONDS", 3600.0)
    arena = make_arena(1)
    slot = await arena.acquire(0, ROWS)
    waiting = asyncio.ensure_future(arena.acquire(0, ROWS))
    await until(lambda: arena.starved)
    slot.release()
    with anyio.fail_after(10):
        assert (await waiting).index == 0
    assert not arena.starved
    arena.close()


async def test_a_slot_that_returns_as_the_feeder_begins_to_wait_is_not_missed() -> None:
    """A garbage collection may end the last reader inside any statement."""
    arena = make_arena(1)
    held = [await arena.acquire(0, ROWS)]
    loop = asyncio.get_running_loop()

    class Collecting:
        def create_future(self) -> asyncio.Future[None]:
            held.clear()
            return loop.create_future()

        def __getattr__(self, name: str) -> Any:
            return getattr(loop, name)

    arena._loop = Collecting()  # type: ignore[assignment]
    with anyio.fail_after(5):
        assert (await arena.acquire(0, ROWS)).index == 0
    arena.close()


async def test_a_cancelled_acquire_loses_no_slot() -> None:
    """Neither while it waits, nor in the turn of the loop in which a slot comes back."""
    arena = make_arena()
    for turns in range(6):
        slots = await take_all(arena)
        waiting = asyncio.ensure_future(arena.acquire(0, ROWS))
        await until(lambda: arena.starved)
        for slot in slots:
            slot.release()
        del slot, slots
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        if not waiting.cancelled():
            waiting.result().release()
        del waiting
        await until(lambda: arena.on_loan == 0)
        assert not arena.starved
    arena.close()


async def test_reclaim_is_called_while_the_feeder_starves_and_only_then() -> None:
    """It is what makes JAX let go of memory, and it is not free."""
    calls: list[None] = []
    arena = make_arena(reclaim=lambda: calls.append(None))
    slots = await take_all(arena)
    await asyncio.sleep(0.01)
    assert calls == []
    waiting = asyncio.ensure_future(arena.acquire(0, ROWS))
    await until(lambda: len(calls) > 5)
    slots.pop().release()
    await waiting
    count = len(calls)
    await asyncio.sleep(0.01)
    arena.kick()
    assert len(calls) == count
    arena.close()


async def test_it_looks_often_only_for_what_a_consumer_has() -> None:
    """All else says when it comes back; but what it forgot to say is found, too."""
    looks: list[int] = []
    arena = make_arena(1, reclaim=lambda: looks.append(arena.on_loan))
    slot = await arena.acquire(0, ROWS)
    waiting = asyncio.ensure_future(arena.acquire(0, ROWS))
    await until(lambda: len(looks) >= 3)
    assert arena._wait_seconds == module._RARE_WAIT_SECONDS
    arena.deliver(slot.index)
    assert arena._wait_seconds == module._FIRST_WAIT_SECONDS
    await until(lambda: arena._wait_seconds == module._LAST_WAIT_SECONDS)
    arena.kick()
    assert arena._wait_seconds == module._FIRST_WAIT_SECONDS
    slot.release()
    await waiting
    arena.close()


async def test_a_consumer_that_comes_back_soon_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It looks for itself, and a look at each of its batches would cost more than they do.

    What something else still reads when it is back, such as a computation, is looked for.
    """
    now = 0.0
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now))
    arena = make_arena(1)
    slot = await arena.acquire(0, ROWS)
    waiting = asyncio.ensure_future(arena.acquire(0, ROWS))
    await until(lambda: arena.starved)
    soon, late = 0.9 * module._SOON_SECONDS, 1.1 * module._SOON_SECONDS
    first, last, rare = (getattr(module, f"_{x}_WAIT_SECONDS") for x in ("FIRST", "LAST", "RARE"))
    expected = first  # of a consumer that nothing is known of
    seen = [(late, first, first), (soon, first, rare), (soon, last, rare), (late, first, first)]
    for pause, when_back, then in seen:
        arena._look_after(rare)  # as after a look that found nothing lent
        arena.deliver(slot.index)
        assert arena._wait_seconds == expected
        now += pause
        arena.kick()
        assert arena._wait_seconds == when_back
        now += 1.0  # in which the next batch is loaded
        expected = then
    slot.release()
    await waiting
    arena.close()


async def test_a_kick_lends_what_has_come_back_without_a_turn_of_the_loop() -> None:
    """Who waits for a slot is woken only for what is left."""
    lazy: list[Any] = []
    arena = make_arena(2, reclaim=lazy.clear)
    slots = await take_all(arena)
    waiting = asyncio.ensure_future(arena.acquire(0, ROWS))
    await until(lambda: arena.starved)
    lent: list[ArenaSlot | None] = []
    lazy.append(slots[0].arrays["x"])
    slots.pop(0).release()
    arena.kick(lambda: lent.append(arena.lend(0, ROWS)))
    assert lent[0] is not None
    assert arena._waiter is not None
    assert not arena._waiter.done()
    lazy += [slots[0].arrays["x"], lent[0].arrays["x"]]
    for slot in (slots.pop(), lent[0]):
        slot.release()
    lent.clear()
    del slot
    arena.kick(lambda: lent.append(arena.lend(0, ROWS)))
    assert (await waiting).index != (lent[0].index if lent[0] else None)
    arena.close()


async def test_a_feed_that_raises_loses_no_slot() -> None:
    arena = make_arena(1)
    slot = await arena.acquire(0, ROWS)
    waiting = asyncio.ensure_future(arena.acquire(0, ROWS))
    await until(lambda: arena.starved)
    slot.release()

    def feed() -> None:
        raise ZeroDivisionError

    arena._free.append(arena._free.pop())  # it is free, and the feeder has not come to it yet
    with pytest.raises(ZeroDivisionError):
        arena.kick(feed)
    assert (await waiting).index == 0
    arena.close()


async def test_what_reclaim_frees_ends_the_wait() -> None:
    """As with JAX, which holds the last reference itself until it is called."""
    lazy: list[Any] = []
    arena = make_arena(1, reclaim=lazy.clear)
    slot = await arena.acquire(0, ROWS)
    lazy.append(slot.arrays["x"])
    slot.release()
    with anyio.fail_after(10):
        assert (await arena.acquire(0, ROWS)).index == 0
    arena.close()


async def test_a_kick_looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer has moved on, so that there is most likely something to reclaim."""
    monkeypatch.setattr(module, "_FIRST_WAIT_SECONDS", 3600.0)
    lazy: list[Any] = []
    arena = make_arena(1, reclaim=lazy.clear)
    slot = await arena.acquire(0, ROWS)
    waiting = asyncio.ensure_future(arena.acquire(0, ROWS))
    await until(lambda: arena.starved)
    lazy.append(slot.arrays["x"])
    slot.release()
    arena.kick()
    with anyio.fail_after(10):
        assert (await waiting).index == 0
    arena.close()


async def test_a_reclaim_that_raises_reaches_the_feeder_and_loses_no_slot() -> None:
    broken = True

    def reclaim() -> None:
        if broken:
            raise ZeroDivisionError

    arena = make_arena(1, reclaim=reclaim)
    slot = await arena.acquire(0, ROWS)
    with pytest.raises(ZeroDivisionError):
        await arena.acquire(0, ROWS)
    broken = False
    slot.release()
    with anyio.fail_after(10):
        assert (await arena.acquire(0, ROWS)).index == 0
    arena.close()


# All of it, against a model -----------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(["acquire", "acquire", "view", "hold", "drop", "drop", "wait"]),
        st.integers(0, 1000),
    ),
    max_size=40,
)


@both_loops
@settings(max_examples=40, deadline=None)
@given(depth=st.integers(1, 4), steps=steps)
def test_exactly_the_slots_that_something_holds_are_on_loan(
    loop: str, depth: int, steps: list[tuple[str, int]]
) -> None:
    """Whatever is acquired, viewed, held and dropped, in whatever order."""
    run_on(loop, follow(depth, steps))


async def follow(depth: int, steps: list[tuple[str, int]]) -> None:
    arena = make_arena(depth)
    holders: dict[int, list[Any]] = {}
    for step, pick in steps:
        if step == "acquire" and len(holders) < depth:
            with anyio.fail_after(10):
                slot = await arena.acquire(pick % 2, 1 + pick % 2)
            assert slot.index not in holders
            holders[slot.index] = [slot]
            del slot
        elif step == "wait" and len(holders) == depth:
            with anyio.move_on_after(0.001) as scope:
                await arena.acquire(0, 1)
            assert scope.cancelled_caught
        elif holders and step in ("view", "hold", "drop"):
            index = sorted(holders)[pick % len(holders)]
            things = holders[index]
            if step == "drop":
                thing = things.pop(pick % len(things))
                if isinstance(thing, ArenaSlot):
                    thing.release()
                del thing
                if not things:
                    del holders[index]
            else:
                things.append(another(things[pick % len(things)], step))
            del things
        expected = set(holders)
        await until(lambda: arena.on_loan <= len(expected))  # noqa: B023
        assert {k for k in range(depth) if not arena.is_free(k)} == expected
    arena.close()


def another(thing: Any, kind: str) -> Any:
    """Make something more that holds the slot which ``thing`` holds."""
    if isinstance(thing, ArenaSlot):
        return thing.hold if kind == "hold" else next(iter(thing.arrays.values()))
    if isinstance(thing, np.ndarray):
        return thing[:1] if kind == "view" else memoryview(thing)
    return np.frombuffer(thing, "uint8", 1)


# Memory of others ---------------------------------------------------------------------------------


async def test_a_loan_may_be_backed_by_other_memory() -> None:
    """The batch lies there; the slot is on loan until nothing reads that memory."""
    arena = make_arena(1)
    slot = await arena.acquire(0, ROWS)
    memory = bytearray(64 + layout_bytes(LARGE))
    np.frombuffer(memory, "float32", 10_000, 64)[:] = np.arange(10_000)
    slot.adopt(memory, 64, LARGE, {"word": ["a", "b"]})
    assert slot.adopted
    assert slot.extras == {"word": ["a", "b"]}
    assert slot.layouts is LARGE
    view = slot.arrays["z"][1, -3:]
    slot.release()
    del slot
    await asyncio.sleep(0.01)
    assert arena.on_loan == 1
    assert view.tolist() == [9997.0, 9998.0, 9999.0]
    del view
    await until(lambda: arena.on_loan == 0)
    again = await arena.acquire(0, ROWS)
    assert not again.adopted
    assert set(again.arrays) == {"x", "y"}
    again.release()
    del again
    await until(lambda: arena.on_loan == 0)
    arena.close()


async def test_who_lent_the_memory_gets_it_back_when_nothing_reads_it() -> None:
    """Only then, and the slot returns with it."""
    arena = make_arena(1)
    slot = await arena.acquire(0, ROWS)
    memory, discarded = bytearray(layout_bytes(LARGE)), []
    slot.adopt(memory, 0, LARGE, {}, discarded.append)
    view = slot.arrays["z"]
    slot.release()
    del slot
    assert discarded == []
    del view
    assert [thing is memory for thing in discarded] == [True]
    await until(lambda: arena.on_loan == 0)
    arena.close()


async def test_memory_that_was_adopted_outlives_the_arena() -> None:
    arena = make_arena(1)
    slot = await arena.acquire(0, ROWS)
    slot.adopt(bytearray(layout_bytes(LARGE)), 0, LARGE, {})
    view = slot.arrays["z"]
    slot.release()
    arena.close()
    view[...] = 7
    assert view.sum() == 70_000
