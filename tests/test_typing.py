"""Tools: the package and the contract of its types pass the type checker, everything the linter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.timeout(240)  # the first run of a type checker has no cache


def _run(*command: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert ran.returncode == 0, f"{' '.join(command)}\n{ran.stdout}{ran.stderr}"


def test_types_are_right() -> None:
    """Strictly, in the package and in the contract of its public API."""
    _run("mypy", "aioloader", "tests/typing")


def test_the_contract_covers_every_public_name() -> None:
    """A name that is added to the package is added there."""
    import aioloader

    text = (ROOT / "tests" / "typing" / "public_api.py").read_text()
    assert [name for name in aioloader.__all__ if name not in text] == []


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_the_code_is_clean(command: str) -> None:
    """By the linter and the formatter, everywhere."""
    _run("ruff", *command.split(), ".")
