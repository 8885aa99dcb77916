"""What every test runs under: a census of what it leaves behind."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import cloudpickle
import jax
import pytest
import support
import uvloop

from aioloader._executors.forkserver import ForkContext, server
from aioloader.testing import no_leaks

if TYPE_CHECKING:
    from collections.abc import Iterator


_HERE = Path(__file__).parent


def pytest_configure() -> None:
    """Hear Ctrl-C, and let programs that tests start hear it, also where a shell ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with whole programs: of the files that processes share they take longest."""
    items.sort(key=lambda item: item.path.parent != _HERE)


@pytest.fixture(scope="session", autouse=True)
def _jax_is_up() -> None:
    """JAX starts threads and uvloop opens a pipe when first used; they are nobody's leak."""
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(asyncio.sleep(0))
    jax.block_until_ready(jax.jit(lambda x: x + 1)(jax.numpy.zeros(8)))


@pytest.fixture(autouse=True)
def _nothing_left_behind(_jax_is_up: None) -> Iterator[None]:
    with no_leaks():
        yield


@pytest.fixture(scope="session", autouse=True)
def _warm_server() -> Iterator[None]:
    """Keep one fork server, so that workers start in no time; it is nobody's leak."""
    with server.use():
        process = ForkContext().Process(target=int)  # once it has run, the server is up
        process.start()
        process.join()
        process.close()
        yield


@pytest.fixture(scope="module", autouse=True)
def _cold_server(request: pytest.FixtureRequest, _warm_server: None) -> Iterator[None]:
    """Have no fork server before the first loader, in a file that asks for that."""
    if not getattr(request.module, "COLD_SERVER", False):
        yield
        return
    server.release()
    yield
    server.retain()


@pytest.fixture(scope="module", autouse=True)
def _functions_of_tests_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """Workers need not import test modules, and with them pytest and jax."""
    modules = [request.module, support]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)
