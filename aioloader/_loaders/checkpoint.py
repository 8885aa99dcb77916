"""Checkpoints: a state as a file, by the protocol of Orbax's ``StatefulCheckpointable``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from aioloader._device.processes import process_file
from aioloader.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

__all__ = ["Checkpointable", "PathAwaitingCreation"]


class PathAwaitingCreation(Protocol):
    """A directory that is being created."""

    async def await_creation(self) -> Any:
        """Wait until the directory exists, and return its path."""


class _Stateful(Protocol):
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: Mapping[str, Any]) -> None: ...


class Checkpointable:
    """What has a state, as Orbax's ``StatefulCheckpointable``."""

    async def save(self: _Stateful, directory: PathAwaitingCreation) -> Coroutine[Any, Any, None]:
        """Return a coroutine that saves the present state (Orbax's ``StatefulCheckpointable``)."""
        return _write_state(self.get_state(), directory)

    async def load(self: _Stateful, directory: Any) -> Coroutine[Any, Any, None]:
        """Return a coroutine that restores a saved state (Orbax's ``StatefulCheckpointable``)."""
        return _read_state(directory, self.set_state)


def _write_state(
    state: dict[str, Any], directory: PathAwaitingCreation
) -> Coroutine[Any, Any, None]:
    """Return a coroutine, to be awaited on any loop, that writes ``state`` to its file."""
    text = json.dumps(state, indent=4)

    async def write() -> None:
        path = anyio.Path(str(await directory.await_creation())) / process_file()
        await path.write_text(text)

    return write()


def _read_state(
    directory: Any, accept: Callable[[dict[str, Any]], None]
) -> Coroutine[Any, Any, None]:
    """Return a coroutine, to be awaited on any loop, that reads a state and hands it over."""

    async def read() -> None:
        path = Path(str(directory)) / process_file()
        try:
            data = await anyio.Path(path).read_bytes()
        except FileNotFoundError:
            raise StateError(f"there is no state of this process at {path}") from None
        try:
            state = json.loads(data)
        except ValueError as error:
            raise StateError(f"the state at {path} is damaged: {error}") from None
        accept(state)

    return read()
