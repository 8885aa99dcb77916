"""Cycling: minibatches without an end, epoch after epoch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, final

import anyio

from aioloader._loaders.minibatching import check_shuffle_seed

if TYPE_CHECKING:
    from aioloader.protocols import DataLoaderProtocol

__all__ = ["CycledMinibatches", "cycled_minibatches"]

PyTreeType = TypeVar("PyTreeType")
_END: Any = object()


def cycled_minibatches(
    dataloader: DataLoaderProtocol[PyTreeType], shuffle_seed: int | None
) -> CycledMinibatches[PyTreeType]:
    """Iterate over minibatches without an end, with ``for``, ``next`` or ``async for``.

    Each epoch is shuffled with a seed one larger than that of the epoch before; with None
    none is shuffled. Where the loader's minibatches know only ``for``, a thread asks for them
    under ``async for``.

    >>> import itertools, numpy as np
    >>> from aioloader import InMemoryDataLoader
    >>> loader = InMemoryDataLoader(np.arange(4), minibatch_size=2)
    >>> [m.tolist() for m in itertools.islice(cycled_minibatches(loader, None), 3)]
    [[0, 1], [2, 3], [0, 1]]

    Raises:
        ValueError: An epoch of the loader has no minibatches.
    """
    check_shuffle_seed(shuffle_seed)
    if dataloader.minibatch_count() < 1:
        raise ValueError(f"dataloader={dataloader!r} has no minibatches in an epoch")
    return CycledMinibatches(dataloader, shuffle_seed)


@final
class CycledMinibatches(Generic[PyTreeType]):
    """Epoch after epoch of one loader, for ``for`` or for ``async for``, not both in turn."""

    def __init__(
        self, dataloader: DataLoaderProtocol[PyTreeType], shuffle_seed: int | None
    ) -> None:
        self._dataloader = dataloader
        self._shuffle_seed = shuffle_seed
        self._epoch: Any = None
        self._yielded = False
        self._way: str | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> PyTreeType:
        self._choose("for")
        while True:
            if self._epoch is None:
                self._epoch = iter(self._next_epoch())
            minibatch = next(self._epoch, _END)
            if minibatch is not _END:
                self._yielded = True
                return minibatch  # type: ignore[no-any-return]
            self._end_epoch()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> PyTreeType:
        self._choose("async for")
        while True:
            if self._epoch is None:
                epoch = self._next_epoch()
                self._epoch = epoch.__aiter__() if hasattr(epoch, "__aiter__") else iter(epoch)
            minibatch = await self._following(self._epoch)
            if minibatch is not _END:
                self._yielded = True
                return minibatch  # type: ignore[no-any-return]
            self._end_epoch()

    def close(self) -> None:
        """Give up the epoch that is running."""
        epoch, self._epoch = self._epoch, None
        if hasattr(epoch, "close"):
            epoch.close()

    async def aclose(self) -> None:
        """Give up the epoch that is running."""
        epoch, self._epoch = self._epoch, None
        if hasattr(epoch, "aclose"):
            await epoch.aclose()
        elif hasattr(epoch, "close"):
            epoch.close()

    async def _following(self, epoch: AsyncIterator[PyTreeType] | Iterator[PyTreeType]) -> Any:
        if isinstance(epoch, AsyncIterator):
            return await anext(epoch, _END)
        return await anyio.to_thread.run_sync(next, epoch, _END)

    def _next_epoch(self) -> Any:
        epoch = self._dataloader.minibatches(self._shuffle_seed)
        if self._shuffle_seed is not None:
            self._shuffle_seed += 1
        self._yielded = False
        return epoch

    def _end_epoch(self) -> None:
        self._epoch = None
        if not self._yielded:
            raise RuntimeError(f"{self._dataloader!r} gave an epoch without minibatches")

    def _choose(self, way: str) -> None:
        if self._way not in (None, way):
            raise RuntimeError(f"this was iterated with `{self._way}` before: make another one")
        self._way = way
