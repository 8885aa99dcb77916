"""Faults: named points of the protocol at which tests make things go wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, final, get_args

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "ENVIRONMENT",
    "LOG_ENVIRONMENT",
    "POINTS",
    "Fault",
    "InjectedFault",
    "Trigger",
    "armed",
    "faults",
    "scribble",
    "strike",
]

ENVIRONMENT = "AIOLOADER_FAULTS"

LOG_ENVIRONMENT = "AIOLOADER_FAULTS_LOG"
"""Names a file to which every fault that strikes adds a line, in whichever process."""

Action = Literal["kill", "stop", "exit", "raise", "hang", "slow"]

POINTS: Mapping[str, str] = {
    "attach": "a worker is about to map the slots' memory",
    "rebuild": "the same, in a worker that replaces one that died",
    "start": "a worker is about to run `startup`",
    "before_write": "a row is about to be loaded",
    "mid_row": "a row is half written",
    "written": "a row is written, and not acknowledged",
    "acknowledging": "a chunk's answer is about to be sent",
    "acknowledged": "a chunk's answer has just been sent",
    "idle": "a worker is about to wait for work",
    "shutdown": "a worker has been told to end",
    "fetch": "an item is about to be fetched, on the event loop",
    "cache_write": "a cache entry is being written, between any two system calls",
}
"""Where a fault may strike. Row points exist in every kind of executor, the others in workers."""

_SCRIBBLE = 0xA5
_EXIT_CODE = 3


class InjectedFault(RuntimeError):
    """What a fault with the action ``raise`` raises."""


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong at one of the `POINTS`.

    ``kill`` and ``stop`` send the process SIGKILL or SIGSTOP, ``exit`` is ``os._exit(3)``,
    ``hang`` waits for ever and ``slow`` for ``seconds``. It strikes at visit number ``visit``
    of the point in a process, counted from 0, and in workers only in the place ``worker``
    (None: in each), and only in ``lives`` generations of workers from ``generation`` on: every
    replacement after a death is a new generation.

    >>> Fault.parse("mid_row=kill:visit=3:worker=1")
    Fault(point='mid_row', action='kill', visit=3, worker=1, generation=0, lives=1, seconds=0.2)
    """

    point: str
    action: Action
    visit: int = 0
    worker: int | None = None
    generation: int = 0
    lives: int = 1
    seconds: float = 0.2

    def __post_init__(self) -> None:
        if self.point not in POINTS:
            raise ValueError(f"point={self.point!r}: the points are {', '.join(POINTS)}")
        if self.action not in get_args(Action):
            raise ValueError(f"action={self.action!r}: one of {', '.join(get_args(Action))}")

    def strikes_in(self, worker: int | None, generation: int) -> bool:
        """Tell whether it is armed in that worker of that generation."""
        first = max(self.generation, self.point == "rebuild")
        here = self.worker is None or worker is None or worker == self.worker
        return here and first <= generation < first + self.lives

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read one as the environment variable gives it: ``point=action[:field=number]...``."""
        head, *options = text.strip().split(":")
        point, _, action = head.partition("=")
        numbers: dict[str, Any] = {}
        for option in options:
            name, _, value = option.partition("=")
            if name not in {f.name for f in fields(cls)} - {"point", "action"}:
                raise ValueError(f"{ENVIRONMENT}: {option!r} in {text!r} is not a fault's option")
            numbers[name] = float(value) if name == "seconds" else int(value)
        return cls(point, action, **numbers)  # type: ignore[arg-type]


_armed: tuple[Fault, ...] = ()


@contextlib.contextmanager
def faults(*armed_faults: Fault) -> Iterator[None]:
    """Arm faults for the loaders that are entered inside the block, and for their workers."""
    global _armed
    before, _armed = _armed, (*_armed, *armed_faults)
    try:
        yield
    finally:
        _armed = before


def armed() -> tuple[Fault, ...]:
    """Return the faults that are armed, here or by the environment variable."""
    text = os.environ.get(ENVIRONMENT, "")
    return (*_armed, *(Fault.parse(part) for part in text.split(",") if part.strip()))


@final
class Trigger:
    """The faults of one process: counts visits to the points, and strikes."""

    def __init__(
        self, faults: tuple[Fault, ...], worker: int | None = None, generation: int = 0
    ) -> None:
        self._faults = [f for f in faults if f.strikes_in(worker, generation)]
        self._visits = dict.fromkeys(POINTS, 0)

    def visit(self, point: str) -> None:
        """Pass a point, if nothing strikes there."""
        for fault in self.due(point):
            seconds = strike(fault)
            if seconds:
                time.sleep(seconds)

    def wrap(self, load: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``load`` with the points of a row around it."""

        def faulty(item: Any, arrays: Mapping[str, np.ndarray], seed: Any) -> Any:
            self.visit("before_write")
            scribble(arrays)
            self.visit("mid_row")
            returned = load(item, arrays, seed)
            self.visit("written")
            return returned

        return faulty

    def due(self, point: str) -> list[Fault]:
        """Count a visit to a point, and return what strikes there."""
        visit = self._visits[point]
        self._visits[point] += 1
        return [f for f in self._faults if f.point == point and f.visit == visit]


def strike(fault: Fault) -> float:
    """Do what can be done at once; returns the seconds to wait for the rest."""
    if log := os.environ.get(LOG_ENVIRONMENT):
        with open(log, "a") as file:
            file.write(f"{fault.point}={fault.action}\n")
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault.action == "exit":
        os._exit(_EXIT_CODE)
    elif fault.action == "raise":
        raise InjectedFault(f"injected at {fault.point!r}")
    return {"hang": 1e9, "slow": fault.seconds}.get(fault.action, 0.0)


def scribble(arrays: Mapping[str, np.ndarray]) -> None:
    """Write nonsense to a row, as a load does that is cut off in the middle."""
    for array in arrays.values():
        raw = array.reshape(-1).view(np.uint8)
        raw[: raw.size // 2] = _SCRIBBLE
