"""Consuming: what a run under faults has delivered, and how long it kept anybody waiting."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from support import digest_of

from aioloader import BatchTimeoutError, Loader, LoadError

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE, LENGTH = 8, 64
ARRAYS = {"x": ((4,), "int64", "int32"), "y": ((), "float32", "float32")}


def load(item: int, arrays: Any, seed: int | None) -> dict[str, object] | None:
    """Fill a row that tells which item and seed it is of."""
    arrays["x"][...] = (item, (seed or 0) % 1000, item * item % 1000, -item)
    arrays["y"][...] = item / 4
    return {"third": item} if item % 3 == 0 else None


def load_spans(items: Any, arrays: Any, seeds: Any) -> dict[str, list[object]] | None:
    """Do the same for neighbouring rows at once."""
    for name in arrays:  # a plain loop: what is tested here is not its speed
        assert len(arrays[name]) == len(items)
    thirds: list[object] = []
    for k, item in enumerate(items):
        row = {name: array[k, ...] for name, array in arrays.items()}
        thirds.append((load(item, row, seeds[k]) or {}).get("third"))
    return {"third": thirds} if any(third is not None for third in thirds) else None


async def load_on_loop(item: int, arrays: Any, seed: int | None) -> dict[str, object] | None:
    """Do the same on the event loop."""
    return load(item, arrays, seed)


async def fetch(item: int) -> int:
    """Fetch an item that is there already."""
    return item


@dataclass
class Consumed:
    """What came of a run: digests in the order of delivery, errors, and seconds."""

    digests: list[str] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    longest_wait: float = 0.0
    leaving: float = 0.0
    deaths: int = 0

    def describe_errors(self) -> str:
        """Name the errors' types, each once."""
        return ", ".join(sorted({type(error).__name__ for error in self.errors}))


async def consume(
    loader: Loader[Any], use: Callable[[Any], object] = lambda batch: None
) -> Consumed:
    """Run a loader to its end, going on behind errors; a time-out of the loader ends it."""
    consumed, clock = Consumed(), time.perf_counter
    async with loader:
        while True:
            started = clock()
            try:
                batch = await anext(loader)
            except StopAsyncIteration:
                break
            except BatchTimeoutError as error:
                consumed.errors.append(error)
                break
            except LoadError as error:
                consumed.errors.append(error)
                continue
            finally:
                consumed.longest_wait = max(consumed.longest_wait, clock() - started)
            consumed.digests.append(digest_of(batch))
            use(batch)
            del batch
        consumed.deaths = loader.statistics().worker_deaths
        started = clock()
    consumed.leaving = clock() - started
    return consumed
