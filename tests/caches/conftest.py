"""Coroutine tests of the caches run on both event loops."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import LOOPS

if TYPE_CHECKING:
    from collections.abc import Mapping

sys.path.insert(0, str(Path(__file__).parent))  # for `providers`, which these tests share


def pytest_asyncio_loop_factories() -> Mapping[str, Any]:
    return LOOPS
