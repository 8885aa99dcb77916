"""The examples in docstrings: each is an equation, and holds."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import aioloader

ROOT = Path(aioloader.__file__).parent


def test_the_examples_in_docstrings_hold() -> None:
    """In every module of the package."""
    attempted = 0
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
        failed, tried = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
        assert failed == 0, module.__name__
        attempted += tried
    assert attempted > 30
