"""The process executor: rows filled by supervised worker processes, in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, final

import cloudpickle

from aioloader._executors.chunks import cut
from aioloader._executors.crew import CrewSpec
from aioloader._executors.failures import short
from aioloader._executors.jobs import Job, Ledger, Pending
from aioloader._executors.limits import require_workers
from aioloader._executors.packing import Packer
from aioloader._executors.parts import Part
from aioloader._executors.supervisor import Supervisor
from aioloader._executors.worker import Board
from aioloader._faults import armed
from aioloader._memory.segment import SharedSegment
from aioloader.protocols import Filled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aioloader._executors.wire import Message
    from aioloader.protocols import Segment, Slot, Work

__all__ = ["ProcessExecutor", "pickle_work"]

_RARE_NUMBERS = "ml_dtypes"  # ten milliseconds of a worker's start, and few layouts have any
_PAGE = 4096


@final
class ProcessExecutor:
    """Fill rows in worker processes (see :class:`aioloader.protocols.Executor`).

    Rows go out in chunks, and every chunk is remembered until it is acknowledged, so that
    the death of a worker costs a second run of those chunks and nothing else. Owns the
    workers, through a `Supervisor`. ``preload`` names modules that all workers will import:
    they are imported once, before workers are forked, and their memory is shared.
    """

    def __init__(self, work: Work, *, preload: Sequence[str] = ()) -> None:
        self._work = work
        self._pickled = pickle_work(work)
        needs_numbers = _RARE_NUMBERS.encode() in self._pickled
        self._preload = (*preload, _RARE_NUMBERS) if needs_numbers else tuple(preload)
        self._ledger = Ledger()
        self._packer = Packer()
        self._supervisor: Supervisor | None = None
        self._segment: SharedSegment | None = None
        self._board_offset = 0

    def __repr__(self) -> str:
        return f"<ProcessExecutor: {len(self._ledger)} chunks pending, {self._supervisor!r}>"

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers that are running now."""
        return [] if self._supervisor is None else self._supervisor.pids()

    @property
    def worker_deaths(self) -> int:
        """How many workers have died and were replaced."""
        return 0 if self._supervisor is None else len(self._supervisor.deaths)

    def allocate(self, nbytes: int) -> Segment:
        """Allocate the slots' memory, with the workers' board behind it."""
        board = self._board_offset = -(-nbytes // _PAGE) * _PAGE
        nbytes = board + Board.nbytes(self._work.num_workers)
        self._segment = SharedSegment(nbytes, reserved_from=board)
        return self._segment

    async def __aenter__(self) -> ProcessExecutor:
        if self._segment is None:
            raise RuntimeError("allocate() comes before entering a ProcessExecutor")
        work = self._work
        require_workers(work.num_workers)
        spec = CrewSpec(
            work.num_workers,
            self._segment,
            self._board_offset,
            work.worker_nice,
            self._pickled,
            armed(),
            self._preload,
        )
        self._supervisor = Supervisor(
            spec, self._ledger, whole=work.vectorized, limit=work.item_timeout
        )
        self._supervisor.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._supervisor is not None:
            await self._supervisor.aclose()
        self._packer.close()
        self._ledger.clear()

    async def fill(
        self,
        slot: Slot,
        rows: Sequence[int],
        items: Sequence[object],
        seeds: Sequence[int | None],
    ) -> Filled:
        """Fill ``rows`` of ``slot``; see the protocol."""
        if not rows:
            return Filled()
        chunks = self._chunks(slot, rows, items, seeds)
        messages = await self._packer.pack(chunks.numbers, chunks.parts)
        return await self._send(chunks, messages, Job(len(rows)), slot.hold).wait()

    def begin_fill(
        self,
        slot: Slot,
        rows: Sequence[int],
        items: Sequence[object],
        seeds: Sequence[int | None],
        on_done: Callable[[], object],
    ) -> Job | None:
        """Do what `fill` does without waiting: ``on_done`` is called once the job has its result.

        Returns None, and has done nothing, where the items have to be encoded off the loop.
        """
        chunks = self._chunks(slot, rows, items, seeds)
        messages = self._packer.pack_now(chunks.numbers, chunks.parts)
        if messages is None:
            return None
        return self._send(chunks, messages, Job(len(rows), on_done), slot.hold)

    def _chunks(
        self, slot: Slot, rows: Sequence[int], items: Sequence[object], seeds: Any
    ) -> _Chunks:
        ledger = self._ledger
        if ledger.broken is not None:
            raise ledger.broken
        cost, workers = ledger.row_cost.seconds, self._work.num_workers
        spans = cut(len(rows), workers, cost, waiting=len(ledger))
        whole = Part(slot.offset, slot.layout_key, rows, items, seeds)
        if len(spans) == 1:
            return _Chunks(spans, [whole], [ledger.number()])
        parts = [whole.take(start, stop) for start, stop in spans]
        return _Chunks(spans, parts, [ledger.number() for _ in spans])

    def _send(self, chunks: _Chunks, messages: Sequence[Message], job: Job, hold: object) -> Job:
        job.expect(len(messages))
        for number, (start, stop), part, message in zip(
            chunks.numbers, chunks.spans, chunks.parts, messages, strict=True
        ):
            self._ledger.unsent.append(Pending(job, number, start, stop, part, message, hold))
        assert self._supervisor is not None
        self._supervisor.flush()
        return job


class _Chunks(NamedTuple):
    """A batch, cut: positions, what is told of them, and their numbers in the ledger."""

    spans: list[tuple[int, int]]
    parts: list[Part]
    numbers: list[int]


def pickle_work(work: Work) -> bytes:
    """Pickle what workers are to do; names the function that cannot travel."""
    try:
        return bytes(cloudpickle.dumps(work))
    except Exception as error:
        parts: dict[str, Callable[..., Any] | None] = {"load": work.load, "startup": work.startup}
        for name, function in parts.items():
            try:
                cloudpickle.dumps(function)
            except Exception as cause:
                raise TypeError(
                    f"{name}={short(function)} cannot be sent to worker processes: {cause}. "
                    "Make what it refers to picklable, or create it in `startup`"
                ) from cause
        raise TypeError(f"the loader's settings cannot be pickled: {error}") from error
