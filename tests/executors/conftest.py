"""On which event loops tests of the executors run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support import LOOPS

if TYPE_CHECKING:
    from collections.abc import Mapping


def pytest_asyncio_loop_factories(item: Any) -> Mapping[str, Any]:
    """Run a test on the loops that it names itself, else on those of its file, else on all."""
    marker = item.get_closest_marker("asyncio")
    if marker is not None and "loop_factories" in marker.kwargs:
        return LOOPS
    return {name: LOOPS[name] for name in getattr(item.module, "ON_LOOPS", LOOPS)}
