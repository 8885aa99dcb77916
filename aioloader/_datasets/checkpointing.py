"""Checkpoints: the state of an iterator as a file, by the protocol of Orbax."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from aioloader.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["PathAwaitingCreation", "read_state", "write_state"]


class PathAwaitingCreation(Protocol):
    """A directory that is being created."""

    async def await_creation(self) -> Any:
        """Wait until the directory exists, and return its path."""


def write_state(
    state: dict[str, Any], directory: PathAwaitingCreation
) -> Coroutine[Any, Any, None]:
    """Return a coroutine, to be awaited on any loop, that writes ``state`` to its file."""
    text = json.dumps(state, indent=4)

    async def write() -> None:
        path = anyio.Path(str(await directory.await_creation())) / _process_file()
        await path.write_text(text)

    return write()


def read_state(
    directory: Any, accept: Callable[[dict[str, Any]], None]
) -> Coroutine[Any, Any, None]:
    """Return a coroutine, to be awaited on any loop, that reads a state and hands it over."""

    async def read() -> None:
        path = Path(str(directory)) / _process_file()
        try:
            data = await anyio.Path(path).read_bytes()
        except FileNotFoundError:
            raise StateError(f"there is no state of this process at {path}") from None
        try:
            state = json.loads(data)
        except ValueError as error:
            raise StateError(f"the state at {path} is damaged: {error}") from None
        if not isinstance(state, dict):
            raise StateError(f"the state at {path} is damaged: it is no object, but {state!r}")
        accept(state)

    return read()


def _process_file() -> str:
    # A program that has not imported jax is one process, as far as jax is concerned.
    jax = sys.modules.get("jax")
    index, count = (jax.process_index(), jax.process_count()) if jax else (0, 1)
    return f"process_{index}-of-{count}.json"
