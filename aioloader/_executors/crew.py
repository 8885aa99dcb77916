"""The crew: one generation of worker processes, and the queue that they share."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import weakref
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from aioloader._executors import wire, worker
from aioloader._executors.forkserver import ForkContext, server
from aioloader._executors.memory_kills import MemoryKills

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioloader._faults import Fault
    from aioloader._memory.segment import SharedSegment

__all__ = ["Crew", "CrewSpec", "Death", "hold_sigpipe", "is_ending"]

_EXIT_SECONDS = 0.15


@final
@dataclass(frozen=True, slots=True)
class CrewSpec:
    """What every generation of workers is started with."""

    num_workers: int
    segment: SharedSegment
    board_offset: int
    nice: int
    pickled_work: bytes
    faults: tuple[Fault, ...] = ()
    preload: Sequence[str] = ()


@final
@dataclass(frozen=True, slots=True)
class Death:
    """How a worker ended: its place, its pid, and a negative signal or an exit code.

    ``ordered`` tells that it was the crew's own doing, ``starved`` that the system has killed
    processes for want of memory meanwhile, and ``raised`` is what its serving raised, if it
    was that which ended.
    """

    index: int
    pid: int
    exitcode: int
    ordered: bool = False
    starved: bool | None = None
    raised: str = ""

    def describe(self) -> str:
        """Say how, in words.

        >>> Death(0, 4711, -9).describe()
        'worker 0 (pid 4711) was killed by SIGKILL (by hand, or by the system for want of memory)'
        """
        who = f"worker {self.index} (pid {self.pid})"
        if self.raised:
            return f"{who} failed: {self.raised}"
        if self.exitcode >= 0:
            return f"{who} exited with code {self.exitcode}"
        name = _signal_name(-self.exitcode)
        why = f" ({_KILLERS[self.starved]})" if self.exitcode == -signal.SIGKILL else ""
        return f"{who} was killed by {name}{why}"


_KILLERS = {
    None: "by hand, or by the system for want of memory",
    True: "by the system, it seems: it has killed for want of memory meanwhile",
    False: "by hand; the system has not killed for want of memory",
}


@final
class _Lane:
    """One worker: a pool of one process, whose one task is to serve the queue."""

    def __init__(self, seat: worker.Seat, pickled_work: bytes) -> None:
        self.context = ForkContext()
        self._killed = False
        self.pool = ProcessPoolExecutor(
            1, mp_context=self.context, initializer=worker.take_seat, initargs=(seat,)
        )
        self.raised = ""
        self.served: Future[int] = self.pool.submit(worker.serve, pickled_work)
        self.served.add_done_callback(self._note)

    def is_dead(self) -> bool:
        process = self.context.process
        return process is None or process.exitcode is not None

    def kill(self) -> None:
        if not self.is_dead():
            assert self.context.process is not None
            self.context.process.kill()
            self._killed = True

    def bury(self, index: int, starved: bool | None) -> Death:
        """Close what is left of a process that has ended."""
        process = self.context.process
        if process is None:
            return Death(index, 0, 0, ordered=True)
        code = process.exitcode or 0
        # One that was killed may have died of something else a moment before.
        ordered = self._killed and code == -signal.SIGKILL and not self.raised
        death = Death(index, process.pid or 0, code, ordered, starved, self.raised)
        process.close()
        return death

    def _note(self, served: Future[int]) -> None:
        error = None if served.cancelled() else served.exception()
        if error is not None and not isinstance(error, BrokenProcessPool):
            self.raised = f"{type(error).__name__}: {error}"


@final
class Crew:
    """A pool of workers in serve loops over one queue.

    Every worker is a ``ProcessPoolExecutor`` of its own, so that the end of one is known as
    that worker's and no other's, and so that no pool needs named semaphores. The queue is
    one socket which all of them read: whoever is free takes the next packet, and packets
    that were sent are worked on also while the event loop is busy with something else.

    The methods block, for milliseconds; only ``socket`` belongs on an event loop.
    """

    def __init__(self, spec: CrewSpec, on_end: Callable[[], None], *, generation: int = 0) -> None:
        self._spec = spec
        self._generation = generation
        self._on_end = on_end
        self._lanes: list[_Lane] = []
        self._kills = MemoryKills()
        self.socket, self._theirs = socket.socketpair(socket.AF_UNIX, wire.SOCKET_KIND)
        self.socket.setblocking(False)
        self._theirs.setblocking(True)  # it may begin with a time-out that the program has set

    def start(self) -> None:
        """Start the processes; they take work as soon as they are up.

        Once the program is ending none is started, and nobody will miss them.
        """
        if _ending.is_set():
            return
        spec = self._spec
        server.retain()
        _running.add(self)
        for index in range(spec.num_workers):
            seat = worker.Seat(
                worker.Descriptor(self._theirs.fileno()),
                worker.Descriptor(spec.segment.descriptor),
                spec.segment.nbytes,
                spec.board_offset,
                index,
                spec.nice,
                self._generation,
                spec.faults,
            )
            lane = _Lane(seat, spec.pickled_work)
            self._lanes.append(lane)
            lane.served.add_done_callback(lambda _: self._on_end())

    def dead(self) -> list[int]:
        """Return the indices of the workers whose processes have ended."""
        return [index for index, lane in enumerate(self._lanes) if lane.is_dead()]

    def pids(self) -> list[int]:
        """Return the workers' process ids."""
        return [lane.context.process.pid or 0 for lane in self._lanes if lane.context.process]

    def is_stopped(self, index: int) -> bool:
        """Tell whether a worker has been stopped, as by SIGSTOP; only Linux tells."""
        process = self._lanes[index].context.process
        try:
            status = Path(f"/proc/{process.pid if process else 0}/stat").read_text()
        except OSError:
            return False
        return status.rpartition(")")[2].split()[0] == "T"

    def kill(self, index: int) -> None:
        """Kill one worker, whatever it is doing."""
        self._lanes[index].kill()

    def end(self, grace_seconds: float = 0.0) -> list[Death]:
        """End every worker: idle ones leave by themselves, busy ones are killed after a grace.

        One that has no work yet, or no more, gets `_EXIT_SECONDS`, if there is a grace at all.
        When this returns no worker can write to the slots any more. Answers that were sent
        can still be read from ``socket``. Returns how each worker ended.
        """
        if self._theirs.fileno() < 0:
            return []  # ended before
        lanes, self._lanes = self._lanes, []
        if grace_seconds > 0:
            self._dismiss()
            self._await(lanes, grace_seconds)
        for lane in lanes:
            if grace_seconds == 0 or not lane.served.done():
                lane.kill()
        # An idle worker ends like any process, and may have something to do on its way out.
        impatience = threading.Timer(_EXIT_SECONDS, _kill_all, (lanes,))
        try:
            impatience.start()
        except RuntimeError:  # there is no thread left for patience
            _kill_all(lanes)
        for lane in lanes:
            lane.pool.shutdown(wait=True)
        impatience.cancel()
        if impatience.ident is not None:
            impatience.join()
        self._theirs.close()
        if self in _running:
            _running.discard(self)
            server.release()
        starved = self._kills.rose()
        return [lane.bury(index, starved) for index, lane in enumerate(lanes)]

    def close(self) -> None:
        """Close the loader's end of the queue."""
        self.socket.close()

    def _await(self, lanes: list[_Lane], grace_seconds: float) -> None:
        wait([lane.served for lane in lanes], grace_seconds)
        for index, lane in enumerate(lanes):
            board = worker.Board(self._spec.segment.buffer, self._spec.board_offset, index)
            if board.read()[0] != worker.Board.IDLE and not lane.served.done():
                lane.kill()
        wait([lane.served for lane in lanes], max(_EXIT_SECONDS - grace_seconds, 0))

    def _dismiss(self) -> None:
        # Packets that nobody has taken yet would be worked on before the end is seen.
        with contextlib.suppress(BlockingIOError):
            while self._theirs.recv(1, socket.MSG_DONTWAIT):
                pass
        self.socket.shutdown(socket.SHUT_RDWR)


def hold_sigpipe() -> None:
    """Keep what this thread, and threads that it starts, write to nobody from ending the program.

    What a worker is started with goes through pipes, the standard library's among them, and the
    worker may have been killed meanwhile. Python ignores the signal, programs may not.
    """
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])


def is_ending() -> bool:
    """Tell whether the program is ending, so that nothing is to be started any more."""
    return _ending.is_set()


def _kill_all(lanes: list[_Lane]) -> None:
    for lane in lanes:
        lane.kill()


_running: weakref.WeakSet[Crew] = weakref.WeakSet()
_ending = threading.Event()


def _end_all() -> None:
    # A program that ends without closing its loader must not wait for pools whose workers
    # wait for work: threads of `concurrent.futures` are joined before `atexit` runs. A loop in
    # a daemon thread goes on meanwhile, and would replace the workers.
    _ending.set()
    for crew in list(_running):
        crew.end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)
_register = getattr(threading, "_register_atexit", None)
if _register is not None:
    _register(_end_all)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
