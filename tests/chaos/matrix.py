"""The matrix: every fault at every point in every kind of executor, and what comes of it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cloudpickle
import uvloop

from aioloader import BatchTimeoutError, DataGroup, Loader, LoadError
from aioloader._faults import Fault, faults
from aioloader.testing import no_leaks
from chaos import consuming
from chaos.consuming import ARRAYS, LENGTH, SIZE, Consumed, consume, fetch, load, load_on_loop

if TYPE_CHECKING:
    from collections.abc import Iterator

ACTIONS = ("kill", "exit", "stop", "hang", "raise", "slow")
POINTS = (
    "attach",
    "rebuild",
    "start",
    "idle",
    "before_write",
    "mid_row",
    "written",
    "acknowledging",
    "acknowledged",
    "shutdown",
    "fetch",
)
KINDS: dict[str, dict[str, Any]] = {
    "1 worker": {"num_workers": 1},
    "2 workers": {"num_workers": 2},
    "thread": {"num_workers": 0},
    "coroutine": {"load": load_on_loop},
}
OF_A_ROW = ("before_write", "mid_row", "written")
HANGS = ("stop", "hang")
LIMIT = 2.0

ITEM_TIMEOUT = 0.4
TIMEOUT = 1.5


@dataclass(frozen=True)
class Cell:
    """One fault at one point in one kind of executor, on one kind of loop."""

    action: str
    point: str
    kind: str
    retries: int = 0

    @property
    def exists(self) -> bool:
        """Whether there is such a point, and a process to end that is not the program itself."""
        if self.point in OF_A_ROW and "worker" in self.kind:
            return True
        if self.point in (*OF_A_ROW, "fetch"):
            return self.action in ("hang", "raise", "slow")
        return "worker" in self.kind

    @property
    def expected(self) -> str:
        """What has to come of it."""
        if self.action == "raise" and self.point in ("attach", "start", "rebuild"):
            # `startup` raises: in every batch's turn, unless the other worker has done them all.
            return "LoadError or delivered" if self.kind == "2 workers" else "LoadError"
        if self.point in (*OF_A_ROW, "fetch") and not self.retries:
            if self.action == "raise":
                return "LoadError"
            if self.action == "hang" or (self.action == "stop"):
                return "LoadError"
        if self.action in HANGS and self.point in (*OF_A_ROW, "fetch"):
            # A hung item is not tried again in a worker: it has ended one.
            return "delivered" if self.point == "fetch" or self.kind == "coroutine" else "LoadError"
        if self.action in HANGS and self.point in ("acknowledging", "acknowledged"):
            return "LoadError or delivered"
        if self.action == "hang" and self.point in ("attach", "start", "rebuild"):
            return "BatchTimeoutError" if self.kind == "1 worker" else "delivered"
        return "delivered"

    def faults(self) -> Iterator[Fault]:
        """Yield what to arm; a replacement needs a death before it."""
        if self.point == "rebuild":
            yield Fault("mid_row", "kill", worker=0)
        visits = {"before_write": 3, "mid_row": 3, "written": 3, "fetch": 11, "idle": 1}
        action: Any = self.action
        seconds = 0.05
        if self.kind == "thread" and action == "hang":
            action, seconds = "slow", 1.0  # nothing ends a thread that never comes back
        worker = None if self.point in OF_A_ROW else 0  # either may be the one that gets the rows
        yield Fault(self.point, action, visits.get(self.point, 0), worker, seconds=seconds)

    def loader(self) -> Loader[int]:
        """Return the loader to run; the same data for every cell."""
        options = {"load": load, "fetch": fetch if self.point == "fetch" else None}
        options |= KINDS[self.kind]
        group = DataGroup(
            SIZE, range(LENGTH), loader_arrays=ARRAYS, shuffle_first=True, shuffle_later="itemwise"
        )
        function = options.pop("load")
        return Loader(
            function,
            group,
            end_at=("epoch", 2),
            item_timeout=ITEM_TIMEOUT,
            timeout=TIMEOUT,
            retries=self.retries,
            **options,
        )


CELLS = [
    cell
    for point, action, kind, retries in itertools.product(POINTS, ACTIONS, KINDS, (0, 1))
    if (cell := Cell(action, point, kind, retries)).exists
]
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def run_cell(cell: Cell, clean: list[str], loop: str) -> tuple[str, Consumed | None]:
    """Run one cell; returns its outcome in a word or two, which starts with WRONG if it is."""
    try:
        with no_leaks(), asyncio.Runner(loop_factory=LOOPS[loop]) as runner, faults(*cell.faults()):
            consumed = runner.run(consume(cell.loader()))
    except Exception:
        return f"WRONG: {traceback.format_exc()}", None
    return judge(cell, consumed, clean), consumed


def judge(cell: Cell, consumed: Consumed, clean: list[str]) -> str:
    """Compare what came with what a clean run delivers, and with what is expected."""
    got = consumed.describe_errors() or "delivered"
    if cell.expected == "delivered" and got == "delivered" and consumed.digests != clean:
        return f"WRONG: {len(consumed.digests)} of {len(clean)} batches, or others"
    missing = [digest for digest in clean if digest not in consumed.digests]
    rest = [digest for digest in clean if digest not in missing]
    failed = [error for error in consumed.errors if isinstance(error, LoadError)]
    timed_out = any(isinstance(error, BatchTimeoutError) for error in consumed.errors)
    if consumed.digests != rest or (len(missing) != len(failed) and not timed_out):
        return f"WRONG: {got}, {len(missing)} batches missing, {len(failed)} errors"
    if got not in cell.expected:
        return f"WRONG: {got}, and {cell.expected} was expected: {consumed.errors}"
    if consumed.longest_wait > LIMIT or consumed.leaving > LIMIT:
        return f"WRONG: waited {consumed.longest_wait:.2f} s, left in {consumed.leaving:.2f} s"
    return got


def clean_digests() -> list[str]:
    """Return what a run without faults delivers."""
    clean = Cell("slow", "mid_row", "thread")
    for factory in LOOPS.values():  # uvloop opens a pipe, and JAX starts threads, when first used
        with asyncio.Runner(loop_factory=factory) as runner:
            digests = runner.run(consume(clean.loader())).digests
    return digests


def main(loops: tuple[str, ...] = ("asyncio", "uvloop"), only: str = "") -> int:
    """Print the matrix; returns how many cells are wrong."""
    logging.getLogger("aioloader").setLevel(logging.ERROR)
    cloudpickle.register_pickle_by_value(consuming)
    clean, outcomes, wrong = clean_digests(), {}, 0
    longest = leaving = 0.0
    cells = [cell for cell in CELLS if only in repr(cell)]
    for cell in cells:
        for loop in loops:
            outcome, consumed = run_cell(cell, clean, loop)
            wrong += outcome.startswith("WRONG")
            if outcome.startswith("WRONG"):
                print(cell, loop, outcome, flush=True)
            if consumed is not None:
                longest = max(longest, consumed.longest_wait)
                leaving = max(leaving, consumed.leaving)
            outcomes.setdefault(cell, set()).add(outcome.split(":")[0])
    print_table(outcomes)
    print(
        f"{len(cells) * len(loops)} cells, {wrong} wrong; longest wait for a batch or an error "
        f"{longest:.2f} s, longest leaving {leaving:.2f} s"
    )
    return wrong


def print_table(outcomes: dict[Cell, set[str]]) -> None:
    """Print a line for each point and kind of executor, a column for each fault."""
    width = 2 * len("BatchTimeoutError") // 2 + 4
    print(f"{'point':14s} {'executor':10s} " + "".join(f"{a:{width}s}" for a in ACTIONS))
    short = {"delivered": "ok", "LoadError": "error", "BatchTimeoutError": "timeout"}
    for point, kind in itertools.product(POINTS, KINDS):
        row = []
        for action in ACTIONS:
            both = [outcomes.get(Cell(action, point, kind, n), {"-"}) for n in (0, 1)]
            words = ["/".join(sorted(short.get(w, w) for w in cell)) for cell in both]
            row.append(words[0] if words[0] == words[1] else f"{words[0]} (retry: {words[1]})")
        print(f"{point:14s} {kind:10s} " + "".join(f"{word:{width}s}" for word in row))
    print("ok: every row delivered once, in order. error: a LoadError in its batch's turn, every")
    print("other row delivered. timeout: BatchTimeoutError. -: there is no such point, or the")
    print("fault would end the program itself.")
