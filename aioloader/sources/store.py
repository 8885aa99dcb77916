"""Opening: a store from a URL, or from what a user has already."""

from __future__ import annotations

import inspect
import os
from typing import Any

from aioloader.sources.adapters import CallableStore, FsspecStore
from aioloader.sources.object_store import ObjectStore
from aioloader.sources.seam import ObjectInfo, Store

__all__ = ["ObjectInfo", "Store", "open_store"]


def open_store(url_or_store: Any, **options: Any) -> Store:
    """Return a store of objects.

    Args:
        url_or_store: A URL or a path (see `ObjectStore`), a store of obstore's, a file system
            of fsspec's, a coroutine function ``get(key)`` (see `CallableStore`), or a `Store`,
            which is returned as it is.
        options: Passed on with a URL, as they are.

    Raises:
        TypeError: It is none of these, or there are options for what is open already.
    """
    if isinstance(url_or_store, str | os.PathLike):
        return ObjectStore(url_or_store, options=options)
    if options:
        raise TypeError(f"options belong to a URL: {url_or_store!r} has been opened already")
    if _is_from("fsspec", url_or_store):
        return FsspecStore(url_or_store)
    if _is_from("obstore", url_or_store):
        return ObjectStore(url_or_store)
    if isinstance(url_or_store, Store):
        return url_or_store
    if inspect.iscoroutinefunction(url_or_store):
        return CallableStore(url_or_store)
    raise TypeError(f"{url_or_store!r} is neither a URL nor a store")


def _is_from(package: str, value: object) -> bool:
    return any(kind.__module__.partition(".")[0] == package for kind in type(value).__mro__)
