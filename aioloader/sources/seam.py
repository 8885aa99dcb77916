"""The seam between stores and sources: one request at a time, checked for its length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, final, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

__all__ = ["ObjectInfo", "Store"]


@final
@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says of an object: its key, its bytes, and a tag that changes with them.

    The size is -1 where a listing does not tell it.
    """

    key: str
    size: int
    etag: str | None = None


@runtime_checkable
class Store(Protocol):
    """Objects by key, as bytes.

    Each call makes one attempt, and raises a `aioloader.sources.errors.StoreError` that tells
    whether another may help: a source adds the policy. Payloads are read-only and cost no copy.
    """

    @property
    def identity(self) -> str:
        """What tells this store from another, in every process, and without credentials."""
        ...

    async def get(self, key: str, *, etag: str | None = None) -> tuple[memoryview, ObjectInfo]:
        """Return a whole object; with ``etag``, raises ObjectChanged where it has another."""
        ...

    async def get_range(
        self, key: str, start: int, stop: int, *, etag: str | None = None
    ) -> memoryview:
        """Return exactly ``stop - start`` bytes of an object; raises ShortRead for fewer."""
        ...

    async def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object, without its bytes."""
        ...

    def list(self, prefix: str = "") -> AsyncIterator[Sequence[ObjectInfo]]:
        """Yield the objects whose keys begin with ``prefix``, in pages, in the store's order."""
        ...
