"""Listing: the keys of a store, as pages come."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import anyio

from aioloader.sources.keys import Keys, KeysBuilder
from aioloader.sources.matching import pattern_regex

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from typing import Any

    from aioloader.sources.seam import ObjectInfo, Store

__all__ = ["chooser", "list_keys"]


def chooser(prefix: str = "", pattern: str | None = None) -> Callable[[str], Any]:
    """Return what tells whether a key begins with a prefix and matches a pattern.

    >>> bool(chooser("a/", "**/*.jpg")("a/b/c.jpg"))
    True
    """
    if not isinstance(prefix, str):
        raise TypeError(f"prefix={prefix!r} must be text")
    if pattern is None:
        return lambda key: key.startswith(prefix)
    matches = pattern_regex(pattern).fullmatch
    return lambda key: key.startswith(prefix) and matches(key)


async def list_keys(store: Store, prefix: str = "", pattern: str | None = None) -> Keys:
    """Return the keys of a store that are chosen, sorted, with sizes and ETags.

    Pages are gone through as they come: what is not chosen is not kept.
    """
    chosen = chooser(prefix, pattern)
    builder = KeysBuilder()
    async with contextlib.aclosing(_pages(store, prefix)) as pages:
        async for page in pages:
            builder.add_page(page, chosen)
    # In order, so that the same objects are the same data whatever a store's own order is.
    return await anyio.to_thread.run_sync(lambda: builder.build().in_order())


async def _pages(store: Store, prefix: str) -> AsyncGenerator[Sequence[ObjectInfo], None]:
    async for page in store.list(prefix):
        yield page
