"""On which event loops tests of the executors run, and with a fork server that is warm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support import LOOPS

from aioloader._executors.forkserver import ForkContext, server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def pytest_asyncio_loop_factories(item: Any) -> Mapping[str, Any]:
    """Run a test on the loops that it names itself, else on those of its file, else on all."""
    marker = item.get_closest_marker("asyncio")
    if marker is not None and "loop_factories" in marker.kwargs:
        return LOOPS
    return {name: LOOPS[name] for name in getattr(item.module, "ON_LOOPS", LOOPS)}


@pytest.fixture(scope="module", autouse=True)
def _warm_server(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep one server for a file that asks for it, so that its workers start in no time."""
    if not getattr(request.module, "WARM_SERVER", False):
        yield
        return
    with server.use():
        process = ForkContext().Process(target=int)  # once it has run, the server is up
        process.start()
        process.join()
        process.close()
        yield
