"""The worker: everything that runs in another process; it never imports jax."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import sys
import threading
from dataclasses import dataclass, replace
from multiprocessing import parent_process, reduction
from typing import TYPE_CHECKING, Any, final

import cloudpickle
import numpy as np

from aioloader._executors import wire
from aioloader._executors.failures import Failure
from aioloader._executors.parts import Part
from aioloader._executors.recipes import BEAT, RowFailed, fill_rows, fill_spans
from aioloader._faults import Fault, Trigger
from aioloader._memory.layout import KEPT_ROWS, RowViews, layout_bytes, view
from aioloader._memory.mapping import map_descriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from aioloader.protocols import Filled, Layouts, Work

__all__ = [
    "ACK_DONE",
    "ACK_FAILED",
    "ACK_STARTED",
    "ACK_UNSTARTED",
    "Board",
    "Seat",
    "worker_index",
]

_F_SETSIG = 10  # Linux; absent from the fcntl module

ACK_STARTED, ACK_UNSTARTED, ACK_DONE, ACK_FAILED = range(4)


@final
class Board:
    """What each worker is at, in memory that outlives it: the chunk, the row, a heartbeat."""

    CELL_BYTES = 64
    IDLE = -1

    def __init__(self, buffer: Any, offset: int, index: int) -> None:
        start = offset + index * self.CELL_BYTES
        self._cell = cell = memoryview(buffer)[start : start + self.CELL_BYTES].cast("q")
        self.progress = cell[1:2]
        """The row that comes next; `BEAT` s on top of it are signs of life."""

    @staticmethod
    def nbytes(num_workers: int) -> int:
        """Return the bytes that the board of ``num_workers`` workers needs."""
        return num_workers * Board.CELL_BYTES

    def clear(self) -> None:
        """Say that nothing is being done."""
        self._cell[0] = self.IDLE

    def begin(self, chunk: int) -> None:
        """Say which chunk is being worked on."""
        self._cell[1] = -1
        self._cell[2] += 1
        self._cell[0] = chunk

    def read(self) -> tuple[int, int, Hashable]:
        """Return the chunk (or `IDLE`), the row (-1 before the first), and a sign of life."""
        chunk, mark, beat = self._cell[:3].tolist()
        return chunk, (mark % BEAT if mark >= 0 else -1), (mark, beat)


@final
class Descriptor:
    """A descriptor to hand to a worker when its process starts."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _detach, (reduction.DupFd(self.number),)


def _detach(handed: Any) -> int:
    descriptor: int = handed.detach()
    return descriptor


@final
@dataclass(frozen=True, slots=True)
class Seat:
    """What a worker is given with its process: its queue, the memory, its place on the board."""

    queue: Any
    memory: Any
    nbytes: int
    board_offset: int
    index: int
    nice: int
    generation: int = 0
    faults: tuple[Fault, ...] = ()


_seat: Seat | None = None


def is_worker() -> bool:
    """Tell whether this process is one of the loader's workers."""
    return _seat is not None


def worker_index() -> int:
    """Return the place of this worker among those of its executor, from 0 on."""
    assert _seat is not None
    return _seat.index


def take_seat(seat: Seat) -> None:
    """Initialize this process as a worker: it dies when the program does, and ignores Ctrl-C."""
    global _seat
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(seat.nice)
    # Forked from one server, the workers would otherwise all draw the same "random" numbers.
    np.random.seed(None)
    _seat = seat


def serve(pickled_work: bytes) -> int:
    """Fill chunks from the queue until it ends; returns how many."""
    assert _seat is not None
    seat = _seat
    queue = socket.socket(fileno=seat.queue)
    trigger = Trigger(seat.faults, seat.index, seat.generation)
    visit = trigger.visit if seat.faults else _pass
    with queue:
        try:
            visit("attach")
            if seat.generation > 0:
                visit("rebuild")
            memory = map_descriptor(os.dup(seat.memory), seat.nbytes)
            board = Board(memory, seat.board_offset, seat.index)
            board.clear()
            visit("start")
            work: Work = cloudpickle.loads(pickled_work)
            if work.startup is not None:
                work.startup()
        except BaseException as error:
            _answer(queue, (ACK_UNSTARTED, Failure.capture(error)))
            return 0
        if seat.faults:
            work = replace(work, load=trigger.wrap(work.load))
        _answer(queue, (ACK_STARTED, seat.index))
        return _Server(queue, seat.memory, memory, board, work, visit).run()


def _pass(point: str) -> None:
    return None


@final
class _Server:
    def __init__(
        self,
        queue: socket.socket,
        descriptor: int,
        memory: Any,
        board: Board,
        work: Work,
        visit: Callable[[str], None],
    ) -> None:
        self._visit = visit
        self._queue = queue
        self._descriptor = descriptor
        self._memory = memory
        self._board = board
        self._work = work
        self._fill = fill_spans if work.vectorized else fill_rows
        self._views: dict[tuple[int, int], RowViews] = {}
        self._spare = KEPT_ROWS

    def run(self) -> int:
        count = 0
        while True:
            self._visit("idle")
            packet, descriptor = wire.receive(self._queue)
            if not packet:
                self._visit("shutdown")
                return count
            number, answer = self._process(packet, descriptor)
            try:
                self._visit("acknowledging")
                _answer(self._queue, answer, number)
            except BrokenPipeError:  # the loader has gone; nobody waits for this
                return count
            except Exception as error:
                failure = Failure.capture(error)
                _answer(self._queue, (ACK_FAILED, number, None, failure), number)
            self._visit("acknowledged")
            self._board.clear()
            count += 1

    def _process(self, packet: bytes, descriptor: int | None) -> tuple[int, tuple[object, ...]]:
        number = wire.tag_of(packet)
        self._board.begin(number)
        row: int | None = None
        try:
            filled = self._run(Part.restore(wire.decode(packet, descriptor)))
        except RowFailed as failed:
            row, error = failed.row, failed.error
        except BaseException as raised:
            error = raised
        else:
            return number, (ACK_DONE, number, filled.seconds, filled.retries, filled.extras)
        return number, (ACK_FAILED, number, row, Failure.capture(error))

    def _run(self, part: Part) -> Filled:
        views = self._views_of(part.offset, part.layout_key)
        load, progress, retries = self._work.load, self._board.progress, self._work.retries
        return self._fill(load, views, part.rows, part.items, part.seeds, progress, retries)

    def _views_of(self, offset: int, layout_key: int) -> RowViews:
        key = (offset, layout_key)
        if key not in self._views:
            layouts: Layouts = self._work.layouts[layout_key]
            if offset + layout_bytes(layouts) > len(self._memory):  # the segment has grown
                nbytes = os.fstat(self._descriptor).st_size
                self._memory = map_descriptor(os.dup(self._descriptor), nbytes)
            views = RowViews(view(self._memory, layouts, offset), self._spare)
            self._views[key] = views
            self._spare -= views.kept  # of a great depth, the first slots keep theirs
        return self._views[key]


def _answer(queue: socket.socket, answer: tuple[object, ...], number: int = 0) -> None:
    message = wire.encode(answer, number)
    try:
        wire.send(queue, message)
    finally:
        message.close()


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    sentinel: Any = parent.sentinel
    if sys.platform == "linux":
        # The kernel kills this process when the parent's end of the pipe closes, also while
        # some C code holds the GIL.
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(sentinel, _F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(sentinel, fcntl.F_GETFL)
        fcntl.fcntl(sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
        if select.select([sentinel], [], [], 0)[0]:  # it died before this was armed
            os._exit(77)
    else:
        threading.Thread(target=_watch, args=(sentinel,), daemon=True).start()


def _watch(sentinel: Any) -> None:
    select.select([sentinel], [], [])
    os._exit(77)
