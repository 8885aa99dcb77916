"""What tests of whole programs share: none outlives its test, whatever became of it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from support import script

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start programs, each a text with arguments."""
    with contextlib.ExitStack() as programs:

        def start(text: str, *args: str, **options: Any) -> subprocess.Popen[str]:
            program = programs.enter_context(script(tmp_path, text, *args, **options))
            programs.callback(program.kill)
            return program

        yield start
