"""The arena: ``depth`` slots over one segment, each on loan for as long as anything reads it."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import math
import threading
import time
import weakref
from collections import deque
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

from aioloader._audit import FreeSlots, current
from aioloader._memory.layout import layout_bytes, take_rows, view

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioloader._audit import Audit
    from aioloader.protocols import Arrays, Extras, Layouts, Segment

__all__ = ["PAGE", "Arena", "ArenaSlot", "slot_bytes"]

PAGE = 4096
_FIRST_WAIT_SECONDS = 200e-6
_LAST_WAIT_SECONDS = 2e-3
_RARE_WAIT_SECONDS = 20e-3
_FEW_WAITS = 4
_SOON_SECONDS = 0.5e-3


def slot_bytes(layouts: tuple[Layouts, ...]) -> int:
    """Return the bytes of a slot that can hold a batch of any of ``layouts``, in whole pages."""
    largest = max(layout_bytes(layout) for layout in layouts)
    return max(1, -(-largest // PAGE)) * PAGE


@final
class ArenaSlot:
    """One slot for one batch: see :class:`aioloader.protocols.Slot`.

    It is on loan while its lease object lives, and the lease lives in this object until
    :meth:`release`, in every view of the arrays, and in whatever took :attr:`hold`.
    """

    def __init__(
        self, arena: Arena, index: int, offset: int, layout_key: int, layouts: Layouts, rows: int
    ) -> None:
        self._arena = arena
        self._lease: Any = arena._lease(index, offset)
        self._arrays: Arrays | None = None
        self.extras: Extras = {}
        self.adopted = False
        self.index = index
        self.offset = offset
        self.layout_key = layout_key
        self.layouts = layouts
        self.rows = rows

    def __repr__(self) -> str:
        state = "released" if self._lease is None else "on loan"
        return f"<ArenaSlot {self.index}: {self.rows} rows, {state}>"

    @property
    def arrays(self) -> Arrays:
        """The batch's arrays, ``(rows, ...)`` each."""
        if self._arrays is None:
            self._arrays = MappingProxyType(view(self.hold, self.layouts))
        return self._arrays

    @property
    def hold(self) -> object:
        """What keeps the slot on loan for as long as it is referenced."""
        if self._lease is None:
            raise RuntimeError(f"slot {self.index} has been released")
        return self._lease

    def adopt(
        self,
        buffer: Any,
        offset: int,
        layouts: Layouts,
        extras: Extras,
        discard: Callable[[Any], object] | None = None,
    ) -> None:
        """Back this loan by other memory, such as a mapped file: the permit stays the same.

        ``buffer`` is writable, and ``layouts`` count from ``offset`` in it. For before anything
        has taken the arrays or the hold; the slot's own memory lies idle until it returns.
        ``discard`` gets the buffer once nothing reads it, on any thread.
        """
        self._arena._forget(self.index)  # that lease may end, and the slot does not return
        self._lease = _lease_type(layout_bytes(layouts)).from_buffer(buffer, offset)
        self._arrays = None
        self._arena._watch(self._lease, self.index)
        if discard is not None:
            weakref.finalize(self._lease, discard, buffer).atexit = False
        self.layouts, self.extras, self.adopted = layouts, extras, True

    def release(self) -> None:
        """Drop this object's own hold; the slot returns once nothing else has one."""
        self._lease = self._arrays = None


@final
class Arena:
    """Lend slots, one at a time, to one feeder.

    A lease is a ctypes array over the slot, and numpy views hang on it, so CPython's own
    reference counts say when the last reader is gone: the batch, a view, a ``jax.Array``
    over it, or a computation in flight. While the feeder waits for a slot the arena calls
    ``reclaim``, because JAX lets go of host memory only when it is next called.
    """

    def __init__(
        self,
        segment: Segment,
        *,
        depth: int,
        layouts: tuple[Layouts, ...],
        reclaim: Callable[[], object],
        base: int = 0,
    ) -> None:
        self.depth = depth
        self._segment = segment
        self._base = base  # where in the segment the first slot starts
        self._layouts = layouts
        self._laid: dict[tuple[int, int], Layouts] = {}
        self._slot_bytes = slot_bytes(layouts)
        self._reclaim = reclaim
        self._lease_type = _lease_type(self._slot_bytes)
        self._audit = current()
        self._free = deque(range(depth)) if self._audit is None else self._audited(self._audit)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._delivered: set[int] = set()
        self._watches: list[weakref.ref[Any] | None] = [None] * depth
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wait_seconds = _FIRST_WAIT_SECONDS
        self._latest = -math.inf  # when a batch was delivered last
        self._comes_soon = False

    def __repr__(self) -> str:
        return f"<Arena: {self.on_loan} of {self.depth} slots on loan>"

    @property
    def on_loan(self) -> int:
        """How many slots are on loan now."""
        return self.depth - len(self._free)

    @property
    def starved(self) -> bool:
        """Whether the feeder is waiting for a slot."""
        return self._waiter is not None

    def is_free(self, index: int) -> bool:
        """Tell whether slot ``index`` has come back."""
        return index in self._free

    def lend(self, layout_key: int, rows: int) -> ArenaSlot | None:
        """Lend a slot laid out for ``rows`` rows of one of the layouts, or None if none is free."""
        return self._lend(self._free.popleft(), layout_key, rows) if self._free else None

    async def acquire(self, layout_key: int, rows: int) -> ArenaSlot:
        """Lend a slot as soon as one is free."""
        while (slot := self.lend(layout_key, rows)) is None:
            await self.wait()
        return slot

    async def wait(self) -> None:
        """Wait until a slot is free."""
        while not self._free:
            self._waiter = waiter = self._loop.create_future()
            try:
                self._look_soon()
                if not self._free:  # a slot may come back inside any statement
                    await waiter
            finally:
                self._waiter = None

    def deliver(self, index: int) -> None:
        """Note that the consumer has slot ``index``: from now on it comes back without a word."""
        self._delivered.add(index)
        self._latest = time.monotonic()
        if self._waiter is not None and not self._comes_soon:
            self._look_within(_FIRST_WAIT_SECONDS)

    def kick(self, feed: Callable[[], object] | None = None) -> None:
        """Look at once for slots that have become free: the consumer has just moved on.

        ``feed`` may lend them at once; whoever waits is woken for what is left.
        """
        # A consumer that soon comes back will do so again, and look then.
        self._comes_soon = time.monotonic() - self._latest < _SOON_SECONDS
        if self._waiter is None:
            return
        waiter, self._waiter = self._waiter, None  # wakes nobody for what `feed` is to take
        try:
            self._reclaim()
            if self._free and feed is not None:
                feed()
        finally:
            self._waiter = waiter
            self._wake()
        if self._delivered:
            self._look_within(self._patience())

    def _patience(self) -> float:
        return _LAST_WAIT_SECONDS if self._comes_soon else _FIRST_WAIT_SECONDS

    def _look_soon(self) -> None:
        self._reclaim()
        if self._delivered:
            self._look_within(self._patience())
        elif self._timer is None:  # one that rings too early costs less than to set it anew
            self._look_after(_RARE_WAIT_SECONDS)

    def _look(self) -> None:
        # By a timer, and not by the feeder: a task that is woken costs as much as ten looks.
        self._timer = None
        if self._waiter is None:
            return
        self._reclaim()
        self._wake()  # where a Ctrl-C has come between a slot's return and this
        rare = not self._delivered  # whatever else is on loan says when it comes back
        longer = min(self._wait_seconds * 2, _LAST_WAIT_SECONDS)
        self._look_after(_RARE_WAIT_SECONDS if rare else longer)

    def _look_within(self, seconds: float) -> None:
        if self._timer is None or self._wait_seconds > _FEW_WAITS * seconds:
            self._look_after(seconds)

    def _look_after(self, seconds: float) -> None:
        self._stop_timer()
        self._wait_seconds = seconds
        self._timer = self._loop.call_later(seconds, self._look)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Give the segment back; slots still on loan keep their memory until they end."""
        self._stop_timer()
        if isinstance(self._free, FreeSlots):
            self._free.close()
        self._segment.close()

    def _lend(self, index: int, layout_key: int, rows: int) -> ArenaSlot:
        offset = self._base + index * self._slot_bytes
        layouts = self._laid_out(layout_key, rows)
        return ArenaSlot(self, index, offset, layout_key, layouts, rows)

    def _lease(self, index: int, offset: int) -> Any:
        lease = self._lease_type.from_buffer(self._segment.buffer, offset)
        self._watch(lease, index)
        return lease

    def _watch(self, lease: Any, index: int) -> None:
        self._watches[index] = weakref.ref(lease, functools.partial(self._ended, index))

    def _forget(self, index: int) -> None:
        self._watches[index] = None

    def _audited(self, audit: Audit) -> FreeSlots:
        segment, base, layouts = self._segment, self._base, self._layouts
        return FreeSlots(
            audit,
            self.depth,
            self._slot_bytes,
            lambda: None if segment.buffer is None else memoryview(segment.buffer)[base:],
            lambda byte: _whereabouts(layouts, byte),
        )

    def _laid_out(self, layout_key: int, rows: int) -> Layouts:
        key = layout_key, rows
        found = self._laid.get(key)
        if found is None:
            layouts = self._layouts[layout_key]
            whole = all(a.shape[0] == rows for a in layouts.values())
            found = self._laid[key] = layouts if whole else take_rows(layouts, rows)
        return found

    def _ended(self, index: int, _watch: object) -> None:
        # Runs wherever the last reference died: on any thread, inside any statement.
        self._watches[index] = None
        try:
            if threading.get_ident() == self._thread and self._audit is None:
                self._give(index)
            else:
                self._loop.call_soon_threadsafe(self._give, index)
        except RuntimeError:  # the loop is closed, and nobody waits for slots any more
            return

    def _give(self, index: int) -> None:
        self._free.append(index)
        self._delivered.discard(index)
        self._wake()

    def _wake(self) -> None:
        if self._free and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@functools.lru_cache(64)
def _lease_type(nbytes: int) -> Any:
    # A subclass, since ctypes' own arrays cannot be referred to weakly.
    return type("Lease", (ctypes.c_char * nbytes,), {})


def _whereabouts(layouts: tuple[Layouts, ...], byte: int) -> str:
    places = set()
    for layout in layouts:
        for name, array in layout.items():
            nbytes = array.count * array.numpy_dtype.itemsize
            if 0 <= byte - array.offset < nbytes:
                row = (byte - array.offset) * array.shape[0] // nbytes
                places.add(f"row {row} of {name!r}")
    return f" ({' or '.join(sorted(places))})" if places else ""
