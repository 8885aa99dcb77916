"""The supervisor: keeps a crew of workers running, and the ledger's chunks going to it."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import TYPE_CHECKING, Any, final

from aioloader._executors import wire
from aioloader._executors.crew import Crew, CrewSpec, Death, hold_sigpipe, is_ending
from aioloader._executors.failures import Failure
from aioloader._executors.finishing import finish
from aioloader._executors.forkserver import server
from aioloader._executors.watch import Watch
from aioloader._executors.worker import ACK_DONE, ACK_FAILED, ACK_STARTED, Board
from aioloader.errors import ItemError
from aioloader.protocols import Filled

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from aioloader._executors.jobs import Ledger, Pending

__all__ = ["Supervisor"]

DEATHS_PER_ROW = 3
"""How many workers one row may end before it is given up."""

_STARTS_WITHOUT_PROGRESS = 3
_GRACE_SECONDS = 0.03  # about a chunk: an item that takes longer may take any time
_READS_PER_WAKE = 64
_QUEUE_FULL = (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)


class _State(Enum):
    NEW = "not started"
    RUNNING = "running"
    RECOVERING = "replacing workers"
    CLOSED = "closed"


@final
class Supervisor:
    """Start workers, send them chunks, hear their answers, and replace them when one dies.

    A crew is never trusted after a death: all its workers are ended first, so that nobody
    can still be writing to a slot, then what was not acknowledged goes to a new crew. Lives
    on the event loop; everything that blocks runs in its one thread, in order.
    """

    def __init__(self, spec: CrewSpec, ledger: Ledger, *, whole: bool, limit: float | None) -> None:
        self._spec = spec
        self._ledger = ledger
        self._whole = whole  # a vectorised load says where it is only by its chunk
        self._limit = limit
        self._tick_seconds = 0.0 if limit is None else max(limit / 5, 0.01)
        self._watch = None if limit is None else Watch(limit, self._tick_seconds * 2)
        self._timer: asyncio.TimerHandle | None = None
        self._state = _State.NEW
        self._crew: Crew | None = None
        self._writing = False
        self._generation = -1
        self._barren = 0
        self._done = False
        self._started: set[int] = set()
        self._hung: set[int] = set()
        self.deaths: list[Death] = []

    def __repr__(self) -> str:
        return f"<Supervisor: {self._state.value}, {len(self.deaths)} deaths>"

    def pids(self) -> list[int]:
        """Return the process ids of the workers that have been started."""
        return [] if self._crew is None else self._crew.pids()

    def start(self) -> None:
        """Start the first crew, without waiting for it."""
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "aioloader-supervisor", hold_sigpipe)
        self._reader = ThreadPoolExecutor(1, "aioloader-reader")  # starts with the first use
        self._thread.submit(server.retain)
        for module in self._spec.preload:
            self._thread.submit(server.preload, module)
        try:
            self._start_crew()
        except BaseException:
            self._thread.submit(server.release)
            self._thread.shutdown(wait=False)
            raise
        if self._watch is not None:
            self._timer = self._loop.call_later(self._tick_seconds, self._look)

    async def aclose(self) -> None:
        """End the workers: idle ones at once, busy ones after a short grace, by force."""
        if self._state in (_State.NEW, _State.CLOSED):
            return
        self._state = _State.CLOSED
        if self._timer is not None:
            self._timer.cancel()
        crew = self._crew
        assert crew is not None
        self._detach(crew)
        try:
            await finish(self._loop.run_in_executor(self._thread, self._end, crew))
        finally:
            self._thread.shutdown(wait=False)
            self._reader.shutdown(wait=False, cancel_futures=True)

    def flush(self) -> None:
        """Send what is unsent until the queue is full, and go on when it no longer is."""
        crew = self._crew
        if crew is None or self._state is not _State.RUNNING:
            return
        if not self._ledger.unsent and not self._writing:
            return
        try:
            while (pending := self._ledger.next_unsent()) is not None:
                wire.send(crew.socket, pending.message)
                self._ledger.sent(pending)
        except BlockingIOError:
            self._want_to_write(crew, True)
        except (BrokenPipeError, ConnectionResetError):
            self._want_to_write(crew, False)  # all are dead: `_on_end` is about to hear of it
        except OSError as error:
            if error.errno not in _QUEUE_FULL:
                raise
        else:
            self._want_to_write(crew, False)

    # Starting ---------------------------------------------------------------------------------

    def _start_crew(self) -> None:
        loop = self._loop

        def ended() -> None:  # on a thread of the pool
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._on_end, crew)

        self._generation += 1
        crew = self._crew = Crew(self._spec, ended, generation=self._generation)
        self._hung.clear()
        for index in range(self._spec.num_workers):
            self._board(index).clear()  # what a worker of the last crew wrote must not count
        if self._watch is not None:
            self._watch.forget()
        self._state = _State.RUNNING
        self._done = False
        self._started = set()
        loop.add_reader(crew.socket.fileno(), self._on_readable, crew)
        starting = loop.run_in_executor(self._thread, crew.start)
        starting.add_done_callback(self._on_started)
        self.flush()

    def _on_started(self, starting: asyncio.Future[None]) -> None:
        error = None if starting.cancelled() else starting.exception()
        if error is not None:
            message = f"worker processes cannot be started: {type(error).__name__}: {error}"
            self._give_up(message, error)

    # Answers ----------------------------------------------------------------------------------

    def _on_readable(self, crew: Crew) -> None:
        if crew is self._crew and self._state is _State.RUNNING:
            self._receive(crew, 1)  # to find that there is no other costs more than a wake-up
            self.flush()

    def _receive(self, crew: Crew, limit: int) -> bool:
        """Read up to ``limit`` answers; returns False once there are no more for now, or ever."""
        was_reset = False
        for _ in range(limit):
            try:
                packet, descriptor = wire.receive(crew.socket)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                # Said once, of workers that ended with work unread; their answers come behind it.
                if was_reset:
                    return False
                was_reset = True
                continue
            if not packet:
                self._loop.remove_reader(crew.socket.fileno())
                return False
            self._hear(packet, descriptor)
        return True

    def _hear(self, packet: bytes, descriptor: int | None) -> None:
        number = wire.tag_of(packet)
        if descriptor is None:
            self._read(number, wire.decode, packet, None)
            return
        # From here on the chunk counts as done, although reading the answer may take a while.
        self._ledger.answered(number)
        reading = self._loop.run_in_executor(self._reader, wire.decode, packet, descriptor)
        reading.add_done_callback(lambda done: self._on_read(number, descriptor, done))

    def _on_read(self, number: int, descriptor: int, reading: asyncio.Future[Any]) -> None:
        if reading.cancelled():  # closed before it was looked at
            os.close(descriptor)
        else:
            self._read(number, reading.result)
            self.flush()

    def _read(self, number: int, answer: Callable[..., tuple[Any, ...]], *args: Any) -> None:
        try:
            kind, *values = answer(*args)
        except Exception as error:  # what `load` returned does not unpickle here
            self._ledger.fail(number, None, Failure.capture(error))
        else:
            self._acknowledge(kind, *values)

    def _acknowledge(self, kind: int, *values: Any) -> None:
        if kind == ACK_DONE:
            self._done = True
            number, seconds, retries, extras = values
            self._ledger.finish(number, Filled(extras, seconds, retries))
        elif kind == ACK_FAILED:
            self._done = True
            self._ledger.fail(*values)
        elif kind == ACK_STARTED:
            self._started.add(values[0])
        else:
            (failure,) = values
            error = failure.to_item_error(0)
            cause = error.__cause__ or error
            self._give_up(f"a worker could not start: {error}", cause, failure.remote_traceback)

    # Deaths -----------------------------------------------------------------------------------

    def _on_end(self, crew: Crew) -> None:
        if crew is not self._crew or self._state is not _State.RUNNING or is_ending():
            return
        self._state = _State.RECOVERING
        self._detach(crew)
        ending = self._loop.run_in_executor(self._thread, crew.end)
        ending.add_done_callback(lambda done: self._on_ended(crew, done))

    def _on_ended(self, crew: Crew, ending: asyncio.Future[list[Death]]) -> None:
        if self._state is not _State.RECOVERING or is_ending():
            return
        if (error := ending.exception()) is not None:
            self._give_up(f"workers cannot be ended: {type(error).__name__}: {error}", error)
            return
        # Nothing can write to the slots now. What was acknowledged before the end counts.
        while self._receive(crew, _READS_PER_WAKE):
            pass
        crew.close()
        deaths = [d for d in ending.result() if not d.ordered or d.index in self._hung]
        if self._done:
            self._barren = 0
        elif any(d.raised or d.index not in self._started for d in deaths):
            self._barren += 1  # one ended before it had started, and none has done anything
        for death in deaths:
            self.deaths.append(death)
            self._account(death)
        self._ledger.requeue()
        if self._ledger.broken is None:
            self._start_crew()

    def _account(self, death: Death) -> None:
        chunk, row, _beat = self._board(death.index).read()
        pending = self._ledger.under_way.get(chunk)
        if pending is None:
            if self._barren >= _STARTS_WITHOUT_PROGRESS:
                self._give_up(f"workers end before they do anything: {death.describe()}", death)
        elif death.index in self._hung:
            self._drop_hung(pending, row)
        elif len(pending.rows) > 1 and (self._whole or row < 0):
            self._ledger.split(pending)
        else:
            self._blame(death, pending, pending.rows[0] if row < 0 else row)

    def _blame(self, death: Death, pending: Pending, row: int) -> None:
        count = pending.job.blame(row)
        if count >= DEATHS_PER_ROW:
            message = f"{count} workers died at this item; the last: {death.describe()}"
            error = ItemError(message, row=row, pid=death.pid, exitcode=death.exitcode)
            self._ledger.drop(pending, error)

    def _drop_hung(self, pending: Pending, row: int) -> None:
        message = (
            f"the item was not loaded within item_timeout={self._limit:g} s; its worker was ended"
        )
        error = ItemError(message, row=pending.rows[0] if row < 0 else row)
        error.__cause__ = TimeoutError(message)
        self._ledger.drop(pending, error)

    def _look(self) -> None:
        self._timer = self._loop.call_later(self._tick_seconds, self._look)
        if self._watch is None or self._crew is None or self._state is not _State.RUNNING:
            return
        for index in self._watch.overdue(time.monotonic(), self._signs(self._crew)):
            if index not in self._hung:
                self._hung.add(index)
                self._crew.kill(index)

    def _signs(self, crew: Crew) -> list[Hashable | None]:
        readings = [self._board(index).read() for index in range(len(crew.pids()))]
        begun = {chunk for chunk, _row, _beat in readings}
        waiting = any(number not in begun for number in self._ledger.under_way)
        signs: list[Hashable | None] = []
        for index, (chunk, row, beat) in enumerate(readings):
            if chunk != Board.IDLE:
                signs.append((chunk, row, beat))
            elif index in self._started:  # it should take what waits
                signs.append(beat if waiting else None)
            else:  # a `startup` may take its time, but not when it is stopped
                signs.append("stopped" if crew.is_stopped(index) else None)
        return signs

    # ------------------------------------------------------------------------------------------

    def _board(self, index: int) -> Board:
        return Board(self._spec.segment.buffer, self._spec.board_offset, index)

    def _give_up(self, message: str, cause: BaseException | Death | None, text: str = "") -> None:
        if isinstance(cause, Death):
            error = ItemError(message, row=-1, pid=cause.pid, exitcode=cause.exitcode)
        else:
            error = ItemError(message, row=-1, remote_traceback=text)
            error.__cause__ = cause
        self._ledger.give_up(error)

    def _want_to_write(self, crew: Crew, wanted: bool) -> None:
        if crew.socket.fileno() < 0:  # closed already, after workers that could not be replaced
            return
        if wanted and not self._writing:
            self._loop.add_writer(crew.socket.fileno(), self.flush)
        elif self._writing and not wanted:
            self._loop.remove_writer(crew.socket.fileno())
        self._writing = wanted

    def _detach(self, crew: Crew) -> None:
        self._want_to_write(crew, False)
        if crew.socket.fileno() >= 0:
            self._loop.remove_reader(crew.socket.fileno())

    def _end(self, crew: Crew) -> None:
        try:
            crew.end(_GRACE_SECONDS)
        finally:
            crew.close()
            server.release()
