"""What takes batches from any loader in the same way, measures, and checks that nothing is lost.

Between two marks, near the start and near the end of an epoch, a loader runs as it would for
hours: what starting and ending cost is told apart.
"""

from __future__ import annotations

import contextlib
import os
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from benchmarks.processes import below

try:
    from uvloop import run as _run
except ImportError:
    from asyncio import run as _run

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from benchmarks.loaders import Row, Work

Columns = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Proof:
    """How a workload's batches are recognized.

    ``sample(arrays)`` returns two columns, cheaply: the item of each row, and something from the
    row's other end; ``witness(items)`` says what the latter must be.
    """

    sample: Callable[[Row], Columns]
    witness: Callable[[np.ndarray], np.ndarray]


def by_ends(arrays: Row) -> Columns:
    """Return both ends of rows that are full of their item."""
    return arrays["x"][:, 0], arrays["x"][:, -1]


ENDS = Proof(by_ends, lambda items: items)


class Consumer:
    """Has each batch as ready arrays of JAX, and drops it before the next."""

    def __init__(self, work: Work, proof: Proof) -> None:
        self.work, self._proof = work, proof
        self._device = jax.devices()[0]
        self._count = work.batches
        self._items = np.zeros(work.batches * work.batch_size, np.int64)
        self._witnesses = np.zeros(len(self._items), np.int64)
        edge = max(1, min(self._count // 8, 4 * work.depth))
        self._marks = edge, max(edge + 1, self._count - edge)
        self.taken = 0
        self.compared = tuple(work.layout)
        self.wrong = ""
        self.figures: dict[str, Any] = {}
        self.on_mark: Callable[[bool], None] = lambda begins: None
        self.begin()

    def begin(self) -> None:
        """Start the clock: the loader is about to be made, in a loop that runs."""
        self._opened = time.perf_counter()

    def entered(self) -> None:
        """Note that the loader has been entered, before its first batch is asked for."""
        self.figures["setup_s"] = time.perf_counter() - self._opened

    def take(self, batch: Row) -> None:
        """Take a batch."""
        if not isinstance(next(iter(batch.values())), jax.Array):
            batch = jax.device_put(dict(batch), self._device)
        jax.block_until_ready(list(batch.values()))
        items, witnesses = self._proof.sample({k: np.asarray(v) for k, v in batch.items()})
        start = self.taken * self.work.batch_size
        end = start + len(items)
        if end > len(self._items):
            self.wrong = self.wrong or f"more than {len(self._items)} rows came"
            return
        self._items[start:end] = items
        self._witnesses[start:end] = witnesses
        self.taken += 1
        if self.taken == 1:
            self.figures["first_s"] = time.perf_counter() - self._opened
        if self.taken in self._marks:
            self._mark(self.taken == self._marks[0])
        if self.taken == self._count:
            self._compare(items, batch)

    def _mark(self, begins: bool) -> None:
        if begins:
            self._computed = tree_cpu()
            self._began = time.perf_counter()
            self.on_mark(True)
            return
        self.on_mark(False)
        seconds = time.perf_counter() - self._began
        computed = tree_cpu() - self._computed
        rows = (self._marks[1] - self._marks[0]) * self.work.batch_size
        self.figures |= {"rate": rows / seconds, "cpu_us": computed / rows * 1e6, "rows": rows}
        self.figures["pss_mib"] = sum(map(pss, tree())) / 1024

    def _compare(self, items: np.ndarray, batch: Row) -> None:
        again = self.work.batch([int(item) for item in items])
        for name in self.compared:
            if not np.array_equal(np.asarray(batch[name]), again[name]):
                self.wrong = self.wrong or f"the last batch has other bytes in {name!r}"

    def verdict(self) -> str:
        """Return what is wrong with what came, or nothing."""
        size = self.work.batch_size
        rows = self._count * size
        if self.taken * size != rows:
            return f"{rows - self.taken * size} of {rows} rows lost"
        if not self._complete():
            return f"other rows came than {rows} of the epoch, each once"
        if not np.array_equal(self._witnesses, self._proof.witness(self._items)):
            return "rows are torn"
        return self.wrong

    def _complete(self) -> bool:
        work, rows = self.work, len(self._items)
        if work.shuffled:  # each epoch has all rows, or if it is cut off no row twice
            epochs = np.array_split(self._items, range(len(work.items), rows, len(work.items)))
            within = all(each.min() >= 0 and each.max() < len(work.items) for each in epochs)
            return within and all(len(np.unique(each)) == len(each) for each in epochs)
        expected = (work.start * work.batch_size + np.arange(rows)) % len(work.items)
        if work.ordered:
            return np.array_equal(self._items, expected)
        return np.array_equal(np.sort(self._items), np.sort(expected))


def consume(epoch: Any, consumer: Consumer) -> dict[str, Any]:
    """Iterate over an epoch, with ``for`` or ``async for``; returns figures."""
    if isinstance(epoch, AbstractAsyncContextManager):
        run(_consume_async(epoch, consumer))
    else:
        _consume(epoch, consumer)
    return consumer.figures | {"wrong": consumer.verdict()}


def run(coroutine: Any) -> Any:
    """Run a coroutine on uvloop, for whichever loader."""
    return _run(coroutine)


def _consume(epoch: AbstractContextManager[Any], consumer: Consumer) -> None:
    consumer.begin()
    with epoch as batches:
        consumer.entered()
        for batch in batches:
            consumer.take(batch)
            del batch


async def _consume_async(epoch: AbstractAsyncContextManager[Any], consumer: Consumer) -> None:
    consumer.begin()
    async with epoch as batches:
        consumer.entered()
        async for batch in batches:
            consumer.take(batch)
            del batch


def tree(pid: int | None = None) -> list[int]:
    """Return a process, this one by default, and all below it."""
    top = pid or os.getpid()
    return [top, *below(top)]


def tree_cpu() -> float:
    """Return the seconds that this process and all below it have computed, also what has ended.

    What has ended and been waited for is in its parent's account, and what nobody waits for
    stays below this process, which has asked to be parent of orphans.
    """
    return sum(map(_cpu, tree()))


def _cpu(pid: int) -> float:
    try:
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, numbers[11:15])) / os.sysconf("SC_CLK_TCK")


def pss(pid: int) -> int:
    """Return a process's share of the memory that it uses, in KiB."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
