"""What tests of fetching share."""

from __future__ import annotations

import random

import pytest
from virtual import Virtually


@pytest.fixture
def virtually(monkeypatch: pytest.MonkeyPatch) -> Virtually:
    """Virtual time, and the same pauses each time."""
    random.seed(0)
    return Virtually(monkeypatch)
