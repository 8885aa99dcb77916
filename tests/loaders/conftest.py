"""Tests of the faces: a file that starts many workers keeps one fork server warm for them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aioloader._executors.forkserver import ForkContext, server

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.insert(0, str(Path(__file__).parent))  # for `loading`, which these tests share


@pytest.fixture(scope="module", autouse=True)
def _warm_server(request: pytest.FixtureRequest) -> Iterator[None]:
    if not getattr(request.module, "WARM_SERVER", False):
        yield
        return
    with server.use():
        process = ForkContext().Process(target=int)  # once it has run, the server is up
        process.start()
        process.join()
        process.close()
        yield
