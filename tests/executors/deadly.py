"""Items and results that end a worker; a module of their own, so that it is quickly imported."""

from __future__ import annotations

import os
from typing import Any


def first_time(path: str) -> bool:
    """Tell whether this is the first call for ``path``, in any process."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class DiesOnce:
    """Ends the first process that unpickles it; later it is a number."""

    def __init__(self, flag: str, number: int) -> None:
        self.state = (flag, number)

    def __reduce__(self) -> Any:
        return _arrive, self.state


class DiesOnceSent:
    """Ends the first process that pickles it; later it arrives as a number."""

    def __init__(self, flag: str, number: int) -> None:
        self.state = (flag, number)

    def __reduce__(self) -> Any:
        if first_time(self.state[0]):
            os._exit(3)
        return int, (self.state[1],)


class AlwaysDies:
    """Ends every process that unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (9,)


def _arrive(flag: str, number: int) -> int:
    if first_time(flag):
        os._exit(3)
    return number
