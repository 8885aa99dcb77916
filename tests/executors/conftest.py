"""Coroutine tests of the executors run on both event loops, with a fork server that is warm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support import LOOPS

from aioloader._executors.forkserver import ForkContext, server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def pytest_asyncio_loop_factories() -> Mapping[str, Any]:
    return LOOPS


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
