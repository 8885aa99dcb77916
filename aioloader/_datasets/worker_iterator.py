"""The iterator over elements that workers make, with the state of one that makes them itself."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, TypeVar, final

from aioloader._datasets.iter_stages import Each, Filtering
from aioloader._datasets.iterators import DatasetIterator
from aioloader._datasets.requests import CurrentLoop, Request
from aioloader._datasets.worker_epoch import Epoch
from aioloader._datasets.worker_recipe import KEPT, failed_at, is_counting, pass_over, restored
from aioloader._executors.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from aioloader._datasets.filtering import Removals
    from aioloader._datasets.options import DatasetOptions
    from aioloader._datasets.requests import Lender
    from aioloader._datasets.worker_epoch import Chunk, Crew

__all__ = ["WorkerIterator"]

T = TypeVar("T")

_LEAVE_SECONDS = 1.0


@final
class _Answer(Request):
    """Waits for what a session has been asked for."""

    __slots__ = ("_asked",)

    def __init__(self, asked: Future[Any]) -> None:
        self._asked = asked

    def block(self, host: Lender) -> Any:
        self._asked.exception()  # an interruption comes out of this wait
        return self._asked.result()

    async def wait(self, host: Lender) -> Any:
        waiting = asyncio.wrap_future(self._asked)
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([waiting])  # a cancellation of this leaves it as it is
        return self._asked.result()


@final
class WorkerIterator(DatasetIterator[T]):
    """Goes through the elements of a `MapDataset` and of stages that workers apply to them.

    The state is that of the iterators of those stages. A chunk is asked for while the one
    before is handed out.
    """

    _waits = _loop_safe = True

    def __init__(
        self,
        crew: Crew,
        length: int,
        stages: Sequence[Each | Filtering],
        removals: Sequence[tuple[int, Removals]],
    ) -> None:
        super().__init__()
        self._is_async = crew.is_awaiting
        self._crew = crew
        self._length = length
        self._stages = stages
        self._removals = removals
        self._keys = [s.key for s in stages if isinstance(s, Each) and is_counting(s)]
        self._next = 0
        self._skips = (0,) * len(self._keys)
        self._chunk: Chunk | None = None
        self._epoch: Epoch | None = None
        self._asked: Future[Any] | None = None
        self._afresh = False
        self._ending: Future[None] | None = None

    async def _advance(self) -> T:
        while True:
            chunk = self._chunk
            if chunk is None:
                chunk = await self._arrival()
            index = self._next
            mark = chunk.marks[index - chunk.order.start] if chunk.marks else KEPT
            kept = mark == KEPT or failed_at(mark)[1]
            element: Any = chunk.elements.popleft() if kept else None
            self._next = index + 1
            if self._next == chunk.order.stop:
                self._chunk = None
            if mark == KEPT:
                for _, removals in self._removals:
                    removals.count(True, self._dataset_options)
                return element  # type: ignore[no-any-return]
            self._leave_out(mark, element)

    def _leave_out(self, mark: int, element: Any) -> None:
        level, failed = failed_at(mark)
        if self._keys:
            skips = list(self._skips)
            pass_over(self._stages, skips, level)
            self._skips = tuple(skips)
        for at, removals in self._removals:
            if at < level or (at == level and not failed):
                removals.count(at < level, self._dataset_options)
        if failed:
            error = restored(element) if isinstance(element, Failure) else element
            try:
                raise error
            finally:
                del error, element

    async def _arrival(self) -> Chunk:
        while self._next < self._length:
            loop = await CurrentLoop() if self._is_async else None
            if self._closed:
                raise ValueError("this iterator has been closed meanwhile")
            asked = self._ask(loop)
            try:
                chunk = await _Answer(asked)
            except CancelledError:
                raise ValueError("this iterator has been closed meanwhile") from None
            except Exception:
                self._give_up(keep=False)
                raise
            self._asked = None
            if chunk is None:
                raise RuntimeError(f"workers have ended before element {self._next}")
            if (chunk.order.start, chunk.order.skips) != (self._next, self._skips):
                self._drop()  # an element was left out that was expected to count
                continue
            self._chunk = chunk
            if chunk.order.stop < self._length:
                self._ask(loop)
            return chunk  # type: ignore[no-any-return]
        self._give_up(keep=True)
        raise StopAsyncIteration

    def _ask(self, loop: asyncio.AbstractEventLoop | None) -> Future[Any]:
        """Ask for the next chunk, unless that has been done."""
        epoch = self._epoch
        if epoch is None:
            self._crew.enlist()
            epoch = self._epoch = Epoch(self._crew, self._length)
        elif epoch.loop is not loop:
            self._drop()
        epoch.loop = loop
        if self._asked is None:
            start = self._next if self._chunk is None else self._chunk.order.stop
            self._asked = epoch.ask(start, self._skips, afresh=self._afresh)
            self._afresh = False
        return self._asked

    def _drop(self) -> None:
        """Forget what has not been handed out."""
        self._chunk = None
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.cancel()
        self._afresh = True

    def _give_up(self, *, keep: bool) -> Future[None] | None:
        """Let go of the workers."""
        self._drop()
        epoch, self._epoch, self._afresh = self._epoch, None, False
        return None if epoch is None else self._crew.discharge(epoch, keep=keep)

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"next_index": self._next}
        for key, skipped in zip(self._keys, self._skips, strict=True):
            state = {"parent": state, str(key): self._next - skipped}
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        counts = []
        for key in reversed(self._keys):
            counts.append(state[str(key)])
            state = state["parent"]
        index = state["next_index"]
        if not 0 <= index <= self._length:
            raise IndexError(
                f"next_index={index} is not a position in a dataset of length {self._length}"
            )
        self._drop()
        self._next = index
        self._skips = tuple(index - count for count in reversed(counts))

    def _apply(self, options: DatasetOptions) -> None:
        self._dataset_options = self._dataset_options.updated(options)

    def _start(self, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        if self._chunk is None and self._next < self._length:
            self._ask(loop() if self._is_async else None)

    def close(self) -> None:
        """End the workers, unless another iterator over this dataset uses them."""
        self._closed = True
        ending = self._give_up(keep=False) or self._crew.retire()
        self._ending = ending or self._ending
        super().close()

    async def aclose(self) -> None:
        self.close()
        await super().aclose()
        if self._ending is not None:
            ending = asyncio.wrap_future(self._ending)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(ending), _LEAVE_SECONDS)

    def __del__(self) -> None:
        with contextlib.suppress(RuntimeError):  # at the end of the program
            self._give_up(keep=True)
