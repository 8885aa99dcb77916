"""A bare worker process: ``python -m benchmarks.loaders.worker ring|count``.

Its work comes as a pickle on stdin. ``ring``: fill whole batches of a shared ring, as a pipe
says. ``count``: fill rows that a pipe names, and then say for how long.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from benchmarks.loaders import Work

RECORD = struct.Struct("<HQ")  # a slot, the number of a batch
TOKEN = struct.Struct("<Q")  # the number of an item


def ring(work: Work, fd: int, tasks: int, done: int, slots: int) -> None:
    """Fill batches until the pipe ends. Views of rows are made once."""
    memory = mmap.mmap(fd, 0)
    size = slot_bytes(work)
    arrays = [work.views(memory, slot * size) for slot in range(slots)]
    rows = [
        [{name: array[row, ...] for name, array in each.items()} for row in range(work.batch_size)]
        for each in arrays
    ]
    cuts, fill = work.cuts, work.fill
    while records := os.read(tasks, RECORD.size):
        slot, number = RECORD.unpack(records)
        for item, row in zip(cuts[number], rows[slot], strict=True):
            fill(item, row, None)
        os.write(done, records)


def slot_bytes(work: Work) -> int:
    """Return the bytes of a slot: whole pages."""
    return -(-work.batch_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def count(work: Work, tokens: int, ready: int, go: int) -> None:
    """Fill one row again and again, with whatever items the pipe has next."""
    arrays = work.batch(work.items[:1])
    row = {name: array[0, ...] for name, array in arrays.items()}
    os.write(ready, b"r")
    os.read(go, 1)
    items, fill, filled = work.items, work.fill, 0
    started, computed = time.perf_counter(), time.process_time()
    while token := os.read(tokens, TOKEN.size):
        fill(items[TOKEN.unpack(token)[0]], row, None)
        filled += 1
    seconds, computed = time.perf_counter() - started, time.process_time() - computed
    print(json.dumps({"rows": filled, "seconds": seconds, "cpu": computed}))


def answer(pipe: Connection) -> None:
    """Do one item, and wait for the end."""
    pipe.send(int(np.full(8, 1, np.int32).sum()))
    pipe.recv()


def main(kind: str) -> None:
    arguments: tuple[Any, ...] = pickle.load(sys.stdin.buffer)
    {"ring": ring, "count": count}[kind](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
