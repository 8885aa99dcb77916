"""Packing: chunks become messages, large ones off the loop, and none is left open."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from typing import Any

import numpy as np
import pytest
from support import until

from aioloader._executors import wire
from aioloader._executors.packing import Packer
from aioloader._executors.parts import Part
from aioloader.errors import ItemError


def parts_of(items: list[Any], pieces: int = 2) -> list[Part]:
    whole = Part(4096, 0, range(100, 100 + len(items)), items, [None] * len(items))
    bounds = [len(items) * k // pieces for k in range(pieces + 1)]
    return [whole.take(a, b) for a, b in itertools.pairwise(bounds)]


class WhereItIsPickled:
    """Remembers the threads that pickle it."""

    seen: set[int] = set()  # noqa: RUF012

    def __reduce__(self) -> Any:
        self.seen.add(threading.get_ident())
        return int, (5,)


class Gate:
    """Something that takes its time to be pickled."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()

    def __reduce__(self) -> Any:
        self.begun.set()
        self.go.wait(30)
        return int, (5,)


async def test_large_views_are_packed_off_the_loop() -> None:
    """Anywhere in an item."""
    view = memoryview(bytes(9000))
    for item in (view, {"jpg": view}, (1, [view])):
        WhereItIsPickled.seen.clear()
        packer = Packer()
        for message in await packer.pack([1, 2], parts_of([item, WhereItIsPickled()])):
            assert message.packet
            message.close()
        assert WhereItIsPickled.seen
        assert threading.get_ident() not in WhereItIsPickled.seen
        packer.close()


@pytest.mark.parametrize("payload", [b"x", bytes(50_000)], ids=["small", "large"])
async def test_each_part_becomes_the_message_of_its_number(payload: bytes) -> None:
    packer = Packer()
    parts = parts_of([payload] * 5)
    messages = await packer.pack([7, 9], parts)
    assert [wire.tag_of(message.packet) for message in messages] == [7, 9]
    assert [message.descriptor is not None for message in messages] == [len(payload) > 1] * 2
    for message, part in zip(messages, parts, strict=True):
        descriptor = None if message.descriptor is None else os.dup(message.descriptor)
        offset, key, rows, items, seeds = Part.restore(wire.decode(message.packet, descriptor))
        assert (offset, key, list(rows), list(items)) == (
            4096,
            0,
            list(part.rows),
            [payload] * len(rows),
        )
        assert len(seeds) == len(rows)
        message.close()
    packer.close()


@pytest.mark.parametrize(
    "item",
    [
        bytes(1 << 16),
        bytearray(1 << 16),
        np.zeros(1 << 16),
        {"a": [bytes(1 << 16)]},
        ("x", np.zeros(1 << 16)),
    ],
    ids=["bytes", "bytearray", "array", "nested", "tuple"],
)
async def test_large_items_are_packed_off_the_loop(item: Any) -> None:
    """Whatever they are wrapped in."""
    packer = Packer()
    WhereItIsPickled.seen.clear()
    for message in await packer.pack([1], parts_of([item, WhereItIsPickled()], 1)):
        message.close()
    packer.close()
    assert threading.get_ident() not in WhereItIsPickled.seen


async def test_small_items_are_packed_at_once() -> None:
    """A thread would take longer than they do."""
    packer = Packer()
    WhereItIsPickled.seen.clear()
    await packer.pack([1], parts_of([WhereItIsPickled()], 1))
    assert {threading.get_ident()} == WhereItIsPickled.seen
    packer.close()


async def test_very_many_items_are_packed_off_the_loop() -> None:
    packer = Packer()
    WhereItIsPickled.seen.clear()
    items = [WhereItIsPickled() for _ in range(5000)]
    for message in await packer.pack([1], parts_of(items, 1)):
        message.close()
    assert threading.get_ident() not in WhereItIsPickled.seen
    packer.close()


@pytest.mark.parametrize("size", [1, 50_000])
async def test_the_item_that_cannot_be_packed_is_named_and_nothing_stays_open(size: int) -> None:
    packer = Packer()
    before = os.listdir("/proc/self/fd")
    items: list[Any] = [bytes(size) for _ in range(6)]
    items[4] = threading.Lock()
    with pytest.raises(ItemError, match=r"item <unlocked _thread\.lock.*cannot be sent") as caught:
        await packer.pack([1, 2], parts_of(items))
    assert caught.value.row == 104
    assert isinstance(caught.value.__cause__, TypeError)
    assert os.listdir("/proc/self/fd") == before
    packer.close()


async def test_packing_that_is_cancelled_leaves_nothing_open() -> None:
    """It goes on in its thread; what comes of it is thrown away."""
    packer, gate = Packer(), Gate()
    before = len(os.listdir("/proc/self/fd"))
    packing = asyncio.ensure_future(packer.pack([1, 2], parts_of([bytes(50_000)] * 3 + [gate])))
    await until(gate.begun.is_set)
    packing.cancel()
    await asyncio.wait([packing])
    assert packing.cancelled()
    gate.go.set()
    await until(lambda: len(os.listdir("/proc/self/fd")) == before)
    packer.close()


async def test_closing_does_not_wait() -> None:
    packer, gate = Packer(), Gate()
    packing = asyncio.ensure_future(packer.pack([1], parts_of([bytes(50_000), gate], 1)))
    await until(gate.begun.is_set)
    packer.close()
    gate.go.set()
    for message in await packing:
        message.close()


async def test_items_that_contain_themselves_are_packed() -> None:
    """Looking into them for something large comes to an end."""
    item: list[Any] = [1]
    item.append(item)
    packer = Packer()
    (message,) = await packer.pack([1], parts_of([item], 1))
    received = Part.restore(wire.decode(message.packet, None)).items[0]
    assert received[1] is received
    packer.close()
