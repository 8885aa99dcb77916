"""The faults, and the work that has them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.peers import Work

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

FAULTS = {
    "exception": "An exception that does not unpickle",
    "exit": "`os._exit(7)` in an item, once",
    "result": "A result that does not pickle",
    "worker": "SIGKILL of a worker",
    "program": "SIGKILL of the program",
}
"""The faults, and what tables call them."""

ITEMS = range(7_000_000, 7_000_400)
BAD = ITEMS[203]
"""The item at fault: a number that occurs in no message by chance."""

BATCH_SIZE = 8
KILL_AT = 10
"""The batch with whose arrival the time to kill somebody has come."""

LAYOUT = {"x": ((1024,), "int32"), "pid": ((1,), "int32")}
_ITEM_SECONDS = 0.002


class Unreadable(Exception):
    """An exception whose pickle does not load: ``__init__`` wants more than ``args`` has."""

    def __init__(self, item: int, reason: str) -> None:
        super().__init__(f"item {item} is unreadable: {reason}")


@dataclass(frozen=True)
class FaultyFill:
    """Fill rows with their item, and go wrong at one of them."""

    fault: str
    flag: str

    def __call__(
        self, item: int, arrays: Mapping[str, np.ndarray], seed: int | None
    ) -> dict[str, object]:
        time.sleep(_ITEM_SECONDS)
        arrays["x"][...] = item
        arrays["pid"][...] = os.getpid()
        if item == BAD and self.fault == "exception":
            raise Unreadable(item, "truncated")
        if item == BAD and self.fault == "exit" and self._first_time():
            os._exit(7)
        if item == BAD and self.fault == "result":
            return {"note": (letter for letter in "abc")}
        return {"note": f"row of {item}"}

    def _first_time(self) -> bool:
        try:
            os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def faulty_work(fault: str, flag: str) -> Work:
    """Return the work for a fault; the file ``flag`` says that it has happened."""
    return Work(ITEMS, LAYOUT, FaultyFill(fault, flag), BATCH_SIZE)
