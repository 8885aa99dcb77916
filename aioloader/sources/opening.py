"""Opening: what the sources of rows in files have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from aioloader.sources.ranges import Once, Ranges, with_elements

if TYPE_CHECKING:
    from collections.abc import Sized

    from aioloader._fetching.fetch import Fetch
    from aioloader._fetching.statistics import FetchStatistics

__all__ = ["Opened"]

T = TypeVar("T", bound="Sized")


class Opened(ABC, Generic[T]):
    """A sequence that knows its rows once it is open: it then has a table of them.

    Entered as an async context manager it is open, and closed when that is left. It is pickled
    without what is bound to this process, which `_prepare` makes anew.
    """

    _rows: ClassVar[str]
    """What a row is called."""
    _bound: ClassVar[tuple[str, ...]]
    """The attributes that `_prepare` makes."""

    _ranges: Ranges
    _table: Once[T]
    fetch: Fetch[int, Any]

    @abstractmethod
    def _prepare(self) -> None: ...

    @abstractmethod
    async def _make(self) -> T: ...

    @abstractmethod
    async def open(self) -> Self:
        """Make the table; harmless to repeat."""
        await self._table.get(self._make)
        return self

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of connections and files; it may be used again."""
        await self._ranges.aclose()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        table = self._table.value
        state = "not open" if table is None else f"{len(table):,} {self._rows}"
        return f"<{type(self).__name__} of {self._ranges.store.identity}: {state}>"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in self._bound}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()

    def __len__(self) -> int:
        return len(self._opened())

    def statistics(self) -> FetchStatistics:
        """Return what it has fetched: requests and bytes of ranges, items that are its rows."""
        return with_elements(self._ranges.statistics(), self.fetch)

    def _opened(self) -> T:
        if self._table.value is None:
            raise RuntimeError("the source is not open: `await source.open()` first")
        return self._table.value
