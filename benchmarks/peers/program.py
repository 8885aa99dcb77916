"""The program that is watched: iterate over one epoch, and write a journal of what comes.

``python -m benchmarks.peers.program LOADER FAULT JOURNAL FLAG``. The file FLAG says that
the fault has happened.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import json
import os
import sys
import time
import traceback
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peers.faulty import KILL_AT, faulty_work

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from benchmarks.peers import Row

_MOST_ERRORS = 3  # in a row, or one time-out: then there is nothing more to come
_TIMED_OUT_SECONDS = 10
_DEED_SECONDS = 10


class Journal:
    """A file with a line of JSON for each thing that happened."""

    def __init__(self, path: str, fault: str, flag: str) -> None:
        self._file = open(path, "a")  # noqa: SIM115 - for as long as the program
        self._fault = fault
        self._flag = flag
        self._batches = 0
        self._errors = 0
        self._asked = time.perf_counter()

    def write(self, **entry: object) -> None:
        """Add a line, with the seconds since the last one."""
        now = time.perf_counter()
        self._file.write(json.dumps({**entry, "waited": now - self._asked}) + "\n")
        self._file.flush()
        self._asked = time.perf_counter()

    def batch(self, batch: Row) -> None:
        """Note a batch's rows; ask for a death when it is time."""
        rows, pids = np.asarray(batch["x"]), np.asarray(batch["pid"])
        whole = (rows == rows[:, :1]).all(axis=1)
        self.write(batch=rows[whole, 0].tolist(), torn=int((~whole).sum()))
        self._batches += 1
        self._errors = 0
        if self._batches == KILL_AT and self._fault in ("worker", "program"):
            self.write(kill=int(pids[-1, 0]) if self._fault == "worker" else os.getpid())
            self._wait_for_the_deed()

    def _wait_for_the_deed(self) -> None:
        # Or else a loader that is ahead might have all it needs by then.
        deadline = time.monotonic() + _DEED_SECONDS
        while not os.path.exists(self._flag) and time.monotonic() < deadline:
            time.sleep(0.001)
        self._asked = time.perf_counter()

    def error(self, error: BaseException) -> bool:
        """Note an error; returns if there is sense in asking again."""
        waited = time.perf_counter() - self._asked
        text = "".join(traceback.format_exception(error))
        self.write(error=type(error).__name__, message=str(error), text=text)
        self._errors += 1
        return self._errors < _MOST_ERRORS and waited < _TIMED_OUT_SECONDS


def read(opened: AbstractContextManager[Any], journal: Journal) -> None:
    """Iterate to the end, beyond errors where the loader goes on."""
    with opened as batches:
        while True:
            try:
                journal.batch(next(batches))
            except StopIteration:
                break
            except (Exception, KeyboardInterrupt) as error:
                if not journal.error(error):
                    break
        journal.write(end=True)


async def read_async(opened: AbstractAsyncContextManager[Any], journal: Journal) -> None:
    """Do the same with what is iterated over asynchronously."""
    async with opened as batches:
        while True:
            try:
                journal.batch(await anext(batches))
            except StopAsyncIteration:
                break
            except (Exception, KeyboardInterrupt) as error:
                if not journal.error(error):
                    break
        journal.write(end=True)


def main(loader: str, fault: str, path: str, flag: str) -> None:
    journal = Journal(path, fault, flag)
    adapter = importlib.import_module(f"benchmarks.peers.{loader}")
    journal.write(versions={name: importlib.metadata.version(name) for name in adapter.PACKAGES})
    opened = adapter.epoch(faulty_work(fault, flag))
    try:
        if isinstance(opened, AbstractAsyncContextManager):
            asyncio.run(read_async(opened, journal))
        else:
            read(opened, journal)
    except (Exception, KeyboardInterrupt) as error:
        journal.error(error)
    journal.write(left=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
