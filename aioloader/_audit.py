"""The audit: what strict mode watches while loaders run, and what it found."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, final

import anyio
import numpy as np

from aioloader._census import Census

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ENVIRONMENT", "Audit", "FreeSlots", "SessionAudit", "auditing", "current"]

ENVIRONMENT = "AIOLOADER_STRICT"
POISON = 0xDB

_POISON_WORD = np.uint64(int.from_bytes(bytes([POISON]) * 8, "little"))
_CHECKED_WORDS = 1 << 15
_SETTLE_SECONDS = 2.0
_IDLE = {"select", "run_forever", "run_until_complete"}
_OWN_FILES = {__file__, sys.modules[Census.__module__].__file__}


@final
class Audit:
    """The problems that strict mode has found, each a text of one or more lines.

    ``notes`` tell what is allowed and still worth to know. An audit that is ``logged`` keeps
    neither, and sends them to the logger ``aioloader.strict`` at once.
    """

    def __init__(self, max_block_seconds: float = 0.1, *, logged: bool = False) -> None:
        if max_block_seconds <= 0:
            raise ValueError(f"max_block_seconds={max_block_seconds!r} has to be above 0")
        self.max_block_seconds = max_block_seconds
        self.logged = logged
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._logger = logging.getLogger("aioloader.strict")
        self._lock = threading.Lock()
        self._watches: dict[asyncio.AbstractEventLoop, _Watch] = {}
        self._sessions = 0
        self._before = Census()
        self._thread = threading.get_ident()

    def __repr__(self) -> str:
        return f"<Audit: {len(self.problems)} problems, {self._sessions} loaders running>"

    def report(self, problem: str) -> None:
        """Enter a problem."""
        if self.logged:
            self._logger.error(problem)
        else:
            self.problems.append(problem)

    def amend(self, problem: str, now: str, news: str) -> None:
        """Replace a problem by what is known of it ``now``, or log the ``news`` of it."""
        if self.logged:
            self._logger.warning(news)
        elif problem in self.problems:
            self.problems[self.problems.index(problem)] = now

    def note(self, text: str) -> None:
        """Enter something that is no problem."""
        if self.logged:
            self._logger.info(text)
        else:
            self.notes.append(text)

    def error(self) -> AssertionError:
        """Return the error that lists all problems."""
        count = "a problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "\n- ".join([f"strict mode has found {count}:", *self.problems])
        error = AssertionError(lines)
        for note in self.notes:
            error.add_note(note)
        return error

    def is_alone(self) -> bool:
        """Tell whether what the program holds now is for this audit alone to judge.

        It is not where blocks that were opened later, or in other threads, still run.
        """
        place = _active.index(self)
        others = [a for a in _active[:place] if not a.logged and a._thread != self._thread]
        return not others and not _active[place + 1 :]

    def enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """A session begins on ``loop``, which is watched from now on."""
        with self._lock:
            if self.logged and self._sessions == 0:
                self._before = Census.take().of_loaders()
            self._sessions += 1
            watch = self._watches.get(loop)
            if watch is None:
                watch = self._watches[loop] = _Watch(self, loop)
            watch.users += 1

    def leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """A session has ended."""
        watch = None
        with self._lock:
            self._sessions -= 1
            if loop in self._watches:
                self._watches[loop].users -= 1
                if self._watches[loop].users == 0:
                    watch = self._watches.pop(loop)
        if watch is not None:
            watch.stop()

    def left_behind(self) -> dict[str, list[str]]:
        """Return what loaders have left, unless one still runs, or others judge of it."""
        with self._lock:
            if not self.logged or self._sessions:
                return {}
            return Census.take().of_loaders().beyond(self._before)

    def close(self) -> None:
        """End all watching."""
        with self._lock:
            watches, self._watches = list(self._watches.values()), {}
        for watch in watches:
            watch.stop()


_active: list[Audit] = []
_own: ContextVar[Audit | None] = ContextVar("aioloader_strict", default=None)

if os.environ.get(ENVIRONMENT, "0") not in ("", "0"):
    _active.append(Audit(logged=True))


def current() -> Audit | None:
    """Return the audit that a session of this context is for, if strict mode is on."""
    if not _active:
        return None
    own = _own.get()
    return own if own in _active else _active[-1]


@contextlib.contextmanager
def auditing(audit: Audit) -> Iterator[None]:
    """Have ``audit`` audit what begins inside the block, and what threads begin meanwhile."""
    _active.append(audit)
    token = _own.set(audit)
    try:
        yield
    finally:
        _active.remove(audit)
        with contextlib.suppress(ValueError):  # left in another context, as by a fixture
            _own.reset(token)
        audit.close()


@final
class SessionAudit:
    """One session's part in an audit, from its opening to its end."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._loop = asyncio.get_running_loop()
        audit.enter(self._loop)

    @classmethod
    def begin(cls) -> SessionAudit | None:
        """Begin one, if strict mode is on."""
        audit = current()
        return None if audit is None else cls(audit)

    async def end(self, reclaim: Callable[[], object], held: Callable[[], list[str]]) -> None:
        """Note which batches are still ``held``, and look for what has been left behind."""
        audit = self._audit
        try:
            reclaim()
            await asyncio.sleep(0)  # slots that were given back are counted in the next turn
            if batches := held():
                audit.note(f"kept after the loader closed, which is allowed: {', '.join(batches)}")
        finally:
            audit.leave(self._loop)
        deadline = time.monotonic() + _SETTLE_SECONDS
        while left := audit.left_behind():
            if time.monotonic() > deadline:
                audit.report(f"left behind by a loader: {left}")
                return
            await anyio.sleep(0.01)


@final
class FreeSlots(deque[int]):
    """The free slots of an arena under audit, in the place of its plain ``deque``.

    A slot that comes back is filled with a pattern. Where the pattern has changed when the
    slot is lent again, or when the arena closes, somebody wrote to it who should not.
    ``buffer`` returns the arena's memory, or None once it has been given back, and
    ``whereabouts`` says in words which array a byte of a slot belongs to.
    """

    def __init__(
        self,
        audit: Audit,
        depth: int,
        slot_bytes: int,
        buffer: Callable[[], Any],
        whereabouts: Callable[[int], str],
    ) -> None:
        super().__init__(range(depth))
        self._audit = audit
        self._slot_bytes = slot_bytes
        self._buffer = buffer
        self._whereabouts = whereabouts
        self._lent: set[int] = set()
        self._poisoned: set[int] = set()
        self._count = depth

    def popleft(self) -> int:
        """Take a slot to lend it."""
        index = super().popleft()
        if index in self._lent:
            self._audit.report(f"slot {index} was lent while it was on loan")
            self._count -= 1
        elif index in self._poisoned:
            self._check(index)
        else:
            self._poison(index)
        self._poisoned.discard(index)
        self._lent.add(index)
        self._balance()
        return index

    def append(self, index: int) -> None:
        """Take a slot back."""
        if index in self._lent:
            self._lent.remove(index)
            self._poison(index)
        else:
            self._audit.report(f"slot {index} was given back twice for one loan")
            self._count += 1
        super().append(index)
        self._balance()

    def close(self) -> None:
        """Check the slots that are free, for the last time."""
        for index in sorted(self._poisoned):
            self._check(index)
        self._poisoned.clear()

    def _balance(self) -> None:
        count = len(self) + len(self._lent)
        if count != self._count:
            self._audit.report(
                f"{len(self)} slots are free and {len(self._lent)} are on loan, "
                f"which should be {self._count} together"
            )
            self._count = count

    def _words(self, index: int) -> np.ndarray | None:
        buffer = self._buffer()
        if buffer is None:
            return None
        return np.frombuffer(buffer, np.uint64, self._slot_bytes // 8, index * self._slot_bytes)

    def _poison(self, index: int) -> None:
        words = self._words(index)
        if words is not None:
            words.fill(_POISON_WORD)
            self._poisoned.add(index)

    def _check(self, index: int) -> None:
        words = self._words(index)
        if words is None:
            return
        for start in range(0, words.size, _CHECKED_WORDS):
            part = words[start : start + _CHECKED_WORDS]
            if (part != _POISON_WORD).any():
                byte = start * 8 + int((part.view(np.uint8) != POISON).argmax())
                self._audit.report(
                    f"slot {index} was written to after its batch had ended, at byte {byte}"
                    f"{self._whereabouts(byte)}: something that `load` or `place` was given "
                    "has been kept, and used after the call"
                )
                return


@final
class _Watch:
    """A daemon thread that looks whether a loop answers.

    It has the loop call back, at most once every quarter of the bound. Time counts as blocked
    while the answer is out, as far as this thread was awake to see it or the loop's thread
    was computing: a program that was stopped has not blocked its loop, and neither has a loop
    that was idle and got no core.
    """

    def __init__(self, audit: Audit, loop: asyncio.AbstractEventLoop) -> None:
        self.users = 0
        self._audit = audit
        self._loop = loop
        self._bound = audit.max_block_seconds
        self._over = threading.Event()
        self._answered: float | None = time.perf_counter()
        self._answer()
        self._thread = threading.Thread(target=self._run, name="aioloader-strict", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self._over.set()
        self._thread.join()

    def _answer(self) -> None:
        self._loop_thread = threading.get_ident()
        self._clock = _thread_clock(self._loop_thread)
        self._answered = time.perf_counter()

    def _run(self) -> None:
        interval = self._bound / 4
        while not self._over.is_set():
            self._answered = None
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # the loop has been closed
                return
            self._follow(interval)

    def _follow(self, interval: float) -> None:
        """Wait for one answer, and report a block if it is late."""
        blocked, seen, computed = 0.0, time.perf_counter(), self._clock()
        stack: list[str] = []
        reported = ""
        while True:
            over = self._over.wait(interval)
            answered, now, computing = self._answered, time.perf_counter(), self._clock()
            own = min(now - seen, computing - computed)
            # This thread could not wake: C code has computed all the time, and let nobody in.
            locked, busy = own > self._bound, own > (now - seen) / 2
            if answered is not None and not locked:
                now = max(answered, seen)
            blocked += max(min(now - seen, 2 * interval), min(now - seen, own))
            seen, computed = now, computing
            if answered is None or locked:
                latest = self._stack(busy)
                if not reported and not (latest and self._loop.is_running()):
                    blocked = 0.0  # it had to wait for a core, or it is strict mode's own work
                stack = latest or stack
            if blocked > self._bound and not reported:
                reported = self._describe("is", blocked, stack)
                self._audit.report(reported)
            if answered is not None or over:
                break
        if reported:
            news = f"that block took {blocked:.3f} s"
            self._audit.amend(reported, self._describe("was", blocked, stack), news)

    def _describe(self, verb: str, seconds: float, stack: list[str]) -> str:
        where = "".join(stack).rstrip() or "  a place that is not known"
        return (
            f"the event loop {verb} blocked for {seconds:.3f} s, and more than "
            f"{self._bound:g} s is too long, in:\n{where}"
        )

    def _stack(self, computing: bool) -> list[str]:
        frame = sys._current_frames().get(self._loop_thread)
        frames = [] if frame is None else list(traceback.walk_stack(frame))
        if any(frame.f_code.co_filename in _OWN_FILES for frame, _ in frames):
            return []
        if frame is not None and frame.f_code.co_name in _IDLE and not computing:
            return []
        return traceback.format_list(traceback.StackSummary.extract(reversed(frames)))


def _thread_clock(thread: int) -> Callable[[], float]:
    """Return a clock of the seconds that a thread has computed, where there is one."""
    find: Callable[[int], int] | None = getattr(time, "pthread_getcpuclockid", None)
    clock = None if find is None else find(thread)

    def seconds() -> float:
        with contextlib.suppress(OSError):  # the thread has ended
            return 0.0 if clock is None else time.clock_gettime(clock)
        return 0.0

    return seconds
