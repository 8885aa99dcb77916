"""Coroutine tests of the devices run on both event loops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support import LOOPS

if TYPE_CHECKING:
    from collections.abc import Mapping


def pytest_asyncio_loop_factories() -> Mapping[str, Any]:
    return LOOPS
