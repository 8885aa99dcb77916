"""The limit: bare processes that fill a shared ring, and pipes over which slots are handed.

There is nothing else: no errors, no leases, no records of what happens. A consumer must be done
with a batch when it asks for the next one.
"""

from __future__ import annotations

import mmap
import os
import pickle
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.loaders.worker import RECORD, slot_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.loaders import Row, Work

PACKAGES = ("jax",)


@contextmanager
def epoch(work: Work) -> Iterator[Iterator[Row]]:
    """Open one epoch."""
    ring = Ring(work)
    try:
        yield ring.batches()
    finally:
        ring.close()


class Ring:
    """A memory that workers share, and two pipes for each of them."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._size = slot_bytes(work)
        self._fd = os.memfd_create("ring")
        os.ftruncate(self._fd, self._size * work.slots)
        self._memory = mmap.mmap(self._fd, 0)
        np.frombuffer(self._memory, np.uint8)[:: mmap.PAGESIZE] = 0
        self._tasks, self._done, self._workers = [], [], []
        for _ in range(work.num_workers):
            self._start()

    def _start(self) -> None:
        tasks, done = os.pipe(), os.pipe()
        given = (self._fd, tasks[0], done[1])
        command = (sys.executable, "-m", "benchmarks.loaders.worker", "ring")
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=given)
        assert worker.stdin is not None
        pickle.dump((self._work, *given, self._work.slots), worker.stdin)
        worker.stdin.close()
        for end in given[1:]:
            os.close(end)
        self._tasks.append(tasks[1])
        self._done.append(done[0])
        self._workers.append(worker)

    def batches(self) -> Iterator[Row]:
        """Yield batches in order; workers take turns."""
        work, depth, workers = self._work, self._work.slots, len(self._workers)
        arrays = [work.views(self._memory, slot * self._size) for slot in range(depth)]
        for number in range(min(depth, work.batches)):
            os.write(self._tasks[number % workers], RECORD.pack(number, number))
        for number in range(work.batches):
            slot, came = RECORD.unpack(os.read(self._done[number % workers], RECORD.size))
            assert came == number
            yield arrays[slot]
            following = number + depth
            if following < work.batches:
                os.write(self._tasks[following % workers], RECORD.pack(slot, following))

    def close(self) -> None:
        """End the workers."""
        for end in self._tasks:
            os.close(end)
        for worker in self._workers:
            worker.wait()
        for end in (*self._done, self._fd):
            os.close(end)
