"""Packing: encode chunks on the loop where that is quick, and in a thread where it is not."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, final

import numpy as np

from aioloader._executors import wire
from aioloader._executors.chunks import RowCost
from aioloader._executors.failures import short
from aioloader.errors import ItemError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioloader._executors.parts import Part

__all__ = ["Packer"]

_INLINE_SECONDS = 0.3e-3
_INLINE_ROWS = 512
_BULKY_BYTES = 8 * 1024


@final
class Packer:
    """Encodes parts of jobs into messages; owns one thread, from the first bulky part on."""

    def __init__(self) -> None:
        self._cost = RowCost()
        self._thread: ThreadPoolExecutor | None = None

    async def pack(self, numbers: Sequence[int], parts: Sequence[Part]) -> list[wire.Message]:
        """Encode ``parts``; raises :class:`ItemError` for the first item that cannot travel."""
        messages = self.pack_now(numbers, parts)
        if messages is not None:
            return messages
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "aioloader-packer")
        bulky = _is_bulky(parts[0].items[0])
        work = self._thread.submit(self._pack, numbers, parts, bulky)
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            work.add_done_callback(_discard)
            raise

    def pack_now(self, numbers: Sequence[int], parts: Sequence[Part]) -> list[wire.Message] | None:
        """Do the same at once, or return None where that would block the loop."""
        if not self._is_quick(sum(len(part.rows) for part in parts)):
            return None
        if _is_bulky(parts[0].items[0]):
            return None
        return self._pack(numbers, parts, False)

    def close(self) -> None:
        """End the thread as soon as it is done with what it is doing."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None

    def _is_quick(self, rows: int) -> bool:
        if self._cost.seconds is None:
            return rows <= _INLINE_ROWS
        return rows * self._cost.seconds <= _INLINE_SECONDS

    def _pack(
        self, numbers: Sequence[int], parts: Sequence[Part], bulky: bool
    ) -> list[wire.Message]:
        started = time.perf_counter()
        messages: list[wire.Message] = []
        try:
            for number, part in zip(numbers, parts, strict=True):
                messages.append(_encode(number, part, bulky))
        except BaseException:
            for message in messages:
                message.close()
            raise
        self._cost.add(sum(len(p.rows) for p in parts), time.perf_counter() - started)
        return messages


def _encode(number: int, part: Part, bulky: bool) -> wire.Message:
    try:
        return wire.encode(part.flat(), number, bulky=bulky)
    except Exception as error:
        row, item = _culprit(part)
        raise ItemError(
            f"item {short(item)} cannot be sent to a worker: {type(error).__name__}: {error}",
            row=row,
        ) from error


def _culprit(part: Part) -> tuple[int, object]:
    for row, item in zip(part.rows, part.items, strict=True):
        try:
            wire.encode(item).close()
        except Exception:
            return row, item
    return part.rows[0], part.items[0]


def _is_bulky(item: object, levels: int = 4) -> bool:
    if isinstance(item, bytes | bytearray):
        return len(item) >= _BULKY_BYTES
    if isinstance(item, np.ndarray | memoryview):
        return item.nbytes >= _BULKY_BYTES
    if isinstance(item, tuple | list):
        return levels > 0 and any(_is_bulky(part, levels - 1) for part in item[:8])
    if isinstance(item, dict):
        return levels > 0 and any(_is_bulky(part, levels - 1) for part in list(item.values())[:8])
    return False


def _discard(work: Future[Any]) -> None:
    if not work.cancelled() and work.exception() is None:
        for message in work.result():
            message.close()
