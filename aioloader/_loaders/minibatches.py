"""Minibatches of a dataset whose elements are loaded one by one, by workers or coroutines."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, final

import anyio

from aioloader._device.placement import reclaim
from aioloader._engine.hosting import Host
from aioloader._engine.session import Session
from aioloader._engine.stages import SessionSpec
from aioloader._executors.choosing import choose_executor
from aioloader._executors.failures import Failure
from aioloader._executors.recipes import is_coroutine_function
from aioloader._iterating import refuse_in_loop
from aioloader._loaders.epochs import DirectEpoch, HostedEpoch, LoopEpoch
from aioloader._loaders.minibatching import (
    MinibatchFeed,
    Probe,
    Recipe,
    check_shuffle_seed,
    count_minibatches,
    make_tickets,
    shuffled,
    take,
    take_async,
)
from aioloader._memory.tree import stack
from aioloader._order.arguments import whole_number
from aioloader.errors import LoadError
from aioloader.protocols import MapDatasetProtocol, Work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import numpy as np

    from aioloader._loaders.minibatching import MinibatchTicket
    from aioloader.protocols import Ticket

__all__ = ["DataLoader", "Minibatches"]

PyTreeType = TypeVar("PyTreeType")


@final
@dataclass(frozen=True, eq=False)
class DataLoader(Generic[PyTreeType]):
    """Minibatches of a dataset too large for memory, each element loaded when it is needed.

    >>> class Squares:
    ...     def __len__(self):
    ...         return 10
    ...     def __getitem__(self, index):
    ...         return {"x": index, "y": index**2}
    >>> loader = DataLoader(Squares(), minibatch_size=4)
    >>> [minibatch["y"].tolist() for minibatch in loader.minibatches(shuffle_seed=None)]
    [[0, 1, 4, 9], [16, 25, 36, 49]]

    Workers start with the first minibatch, are kept between epochs, and end with `close`,
    `aclose`, a ``with`` or ``async with`` block, or with the loader itself. Several epochs
    may run at once; each has workers of its own.

    Args:
        dataset: Elements by index: pytrees of arrays and numbers. Where ``__getitem__`` is a
            coroutine function, elements are awaited on the event loop, many at once.
        minibatch_size: How many elements a minibatch has.
        num_workers: How many worker processes load; with 0, ``for`` loads in the calling
            thread, and ``async for`` in a thread beside the loop.
        drop_last: Whether elements that do not fill a minibatch are left out; after the
            shuffle, so that they are others with every seed.
        collate_fn: Makes a minibatch of a list of elements; it runs where they are loaded.
            By default leaves are stacked along a new first axis.
        max_concurrency: How many elements are awaited at once.
        item_timeout: How many seconds an element may take, with workers or coroutines.
        worker_nice: The niceness of workers.

    Raises:
        ValueError, TypeError: An argument is wrong; the message names it.
    """

    dataset: MapDatasetProtocol[Any]
    minibatch_size: int
    num_workers: int = 0
    drop_last: bool = True
    collate_fn: Callable[[list[Any]], PyTreeType] = stack
    workers_state: Any = field(init=False, repr=False)
    max_concurrency: int = field(default=64, kw_only=True)
    item_timeout: float | None = field(default=None, kw_only=True)
    worker_nice: int = field(default=10, kw_only=True)

    def __post_init__(self) -> None:
        for name, at_least in (("minibatch_size", 1), ("num_workers", 0), ("max_concurrency", 1)):
            whole_number(name, getattr(self, name), at_least=at_least)
        for name in ("__getitem__", "__len__"):
            if not hasattr(self.dataset, name):
                raise TypeError(f"dataset={self.dataset!r} has no {name}")
        if not callable(self.collate_fn):
            raise TypeError(f"collate_fn={self.collate_fn!r} is not callable")
        if self.item_timeout is not None and not self.item_timeout > 0:
            raise ValueError(f"item_timeout must be positive, got {self.item_timeout!r}")
        if len(self.dataset) == 0:
            raise ValueError("dataset is empty")
        host = Host()
        object.__setattr__(self, "workers_state", host)
        weakref.finalize(self, host.abandon).atexit = False

    def minibatch_count(self) -> int:
        """Return the number of minibatches in an epoch."""
        return count_minibatches(len(self.dataset), self.minibatch_size, self.drop_last)

    def minibatches(self, shuffle_seed: int | None) -> Minibatches[PyTreeType]:
        """Return an epoch's minibatches, in an order that ``shuffle_seed`` chooses.

        The order is that of ``numpy.random.default_rng(shuffle_seed).shuffle``, and that of
        the data for None. What is returned can be iterated again and again.
        """
        check_shuffle_seed(shuffle_seed)
        return Minibatches(self, shuffle_seed)

    def close(self) -> None:
        """End the workers; harmless to repeat. The next epoch would start others."""
        self.workers_state.close()

    async def aclose(self) -> None:
        """Do the same without blocking the event loop."""
        await anyio.to_thread.run_sync(self.workers_state.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.aclose()

    def __reduce__(self) -> tuple[Any, ...]:
        options = {name: getattr(self, name) for name in _OPTIONS}
        return partial(DataLoader, **options), (self.dataset, self.minibatch_size)


_OPTIONS = (
    "num_workers",
    "drop_last",
    "collate_fn",
    "max_concurrency",
    "item_timeout",
    "worker_nice",
)
_probes: weakref.WeakKeyDictionary[DataLoader[Any], Probe] = weakref.WeakKeyDictionary()


@final
class Minibatches(Generic[PyTreeType]):
    """The minibatches of one epoch, with a length, for ``for`` and for ``async for``."""

    def __init__(self, loader: DataLoader[PyTreeType], shuffle_seed: int | None) -> None:
        self._loader = loader
        self._shuffle_seed = shuffle_seed
        self._is_async = is_coroutine_function(loader.dataset.__getitem__)

    def __repr__(self) -> str:
        return f"<{len(self)} minibatches, shuffle_seed={self._shuffle_seed}>"

    def __len__(self) -> int:
        return self._loader.minibatch_count()

    def __iter__(self) -> Iterator[PyTreeType]:
        if self._is_async:
            refuse_in_loop("async for minibatch in ...")
        elif self._loader.num_workers == 0:
            return DirectEpoch(self._directly)
        return self._hosted()

    def __aiter__(self) -> AsyncIterator[PyTreeType]:
        return LoopEpoch(self._begin_here, self._loader) if self._is_async else self._hosted()

    def _hosted(self) -> HostedEpoch[PyTreeType]:
        host = self._loader.workers_state

        async def begin() -> Session:
            tickets = await self._tickets()
            session: Session = await host.begin(self._open, tickets)
            return session

        return HostedEpoch(host, begin, self._loader)

    async def _begin_here(self) -> Session:
        return await self._open(await self._tickets())

    async def _tickets(self) -> Iterator[Ticket]:
        return self._cut(await anyio.to_thread.run_sync(self._order))

    def _order(self) -> range | np.ndarray:
        return shuffled(len(self._loader.dataset), self._shuffle_seed)

    def _cut(self, order: range | np.ndarray) -> Iterator[MinibatchTicket]:
        whole = self._loader.collate_fn is not stack
        return make_tickets(order, self._loader.minibatch_size, len(self), whole=whole)

    async def _open(self, tickets: Iterator[Ticket]) -> Session:
        loader, probe = self._loader, await self._probe()
        recipe = Recipe(loader.dataset, loader.collate_fn, probe)
        work = Work(
            recipe.on_loop if self._is_async else recipe,
            (probe.layouts,),
            num_workers=loader.num_workers,
            max_concurrency=loader.max_concurrency,
            item_timeout=loader.item_timeout,
            worker_nice=loader.worker_nice,
        )
        depth = self._depth(probe)
        spec = SessionSpec(
            MinibatchFeed(probe, views=depth - 2),
            choose_executor(work),
            work.layouts,
            depth,
            True,
            reclaim,
        )
        session = Session(spec, tickets)
        await session.open()
        return session

    def _depth(self, probe: Probe) -> int:
        loader = self._loader
        if self._is_async:  # enough minibatches for as many elements as may be awaited at once
            at_once = 1 if probe.whole else loader.minibatch_size
            return max(4, -(-loader.max_concurrency // at_once) + 2)
        return loader.num_workers + 3 if probe.whole else 4

    async def _probe(self) -> Probe:
        loader = self._loader
        probe = _probes.get(loader)
        if probe is None:
            whole = loader.collate_fn is not stack
            indices = range(min(loader.minibatch_size if whole else 1, len(loader.dataset)))
            try:
                if self._is_async:
                    elements = await take_async(loader.dataset, indices)
                else:
                    elements = await anyio.to_thread.run_sync(take, loader.dataset, indices)
                tree: Any = loader.collate_fn(elements) if whole else elements[0]
            except Exception:  # it comes again, in its turn; until then nothing fits
                return Probe.of(None, 1 if whole else loader.minibatch_size, whole=whole)
            probe = Probe.of(tree, 1 if whole else loader.minibatch_size, whole=whole)
            _probes[loader] = probe
        return probe

    def _directly(self) -> Iterator[Callable[[], PyTreeType]]:
        for ticket in self._cut(self._order()):
            yield partial(self._make, ticket)

    def _make(self, ticket: MinibatchTicket) -> PyTreeType:
        loader = self._loader
        try:
            return loader.collate_fn(take(loader.dataset, [int(i) for i in ticket.indices]))
        except Exception as error:
            summary = Failure.capture(error).summary
            raise LoadError(
                f"{ticket.describe()} could not be loaded: {summary}", batch=ticket.position
            ) from error
