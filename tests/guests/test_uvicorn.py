"""Under uvicorn: a loader in an application's lifespan, and batches in its requests."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import both_loops, descendants, is_alive, run_on, until

if TYPE_CHECKING:
    import subprocess

    import pytest
    from conftest import Start

REQUESTS = 12

# An application by hand. Its answers say who hears SIGINT and SIGTERM at that moment.
SERVER = """
import json, signal, socket, sys, time
import uvicorn
from aioloader import DataGroup, Loader

def load(item, arrays, seed):
    if item >= 8 * 14:
        time.sleep(600)
    arrays["x"][...] = item

def handlers():
    numbers = (signal.SIGINT, signal.SIGTERM)
    return [getattr(signal.getsignal(n), "__qualname__", "default") for n in numbers]

async def app(scope, receive, send):
    await (lifespan if scope["type"] == "lifespan" else request)(receive, send)

async def lifespan(receive, send):
    await receive()
    if "bare" in sys.argv:
        await serve(receive, send)
        return
    global loader
    group = DataGroup(8, range(10**6), loader_arrays={"x": ((), "int32", "int32")})
    async with Loader(load, group, num_workers=2) as loader:
        await serve(receive, send)

async def serve(receive, send):
    await send({"type": "lifespan.startup.complete"})
    print(*listener.getsockname(), *handlers(), flush=True)
    await receive()
    print(*handlers(), flush=True)
    await send({"type": "lifespan.shutdown.complete"})

async def request(receive, send):
    answer = {"handlers": handlers()}
    if "bare" not in sys.argv:
        with await anext(loader) as batch:
            answer |= {"batch": batch.batch_num, "sum": int(batch.arrays["x"].sum())}
    body = json.dumps(answer).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

listener = socket.create_server(("127.0.0.1", 0))
config = uvicorn.Config(app, loop=sys.argv[1], lifespan="on", ws="none", log_level="warning")
uvicorn.Server(config).run(sockets=[listener])
"""


async def get(port: int) -> Any:
    """Make a request and return the JSON of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, body = answer.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200 ")
    return json.loads(body)


async def get_all(port: int) -> list[Any]:
    """Make requests, all at once."""
    return await asyncio.gather(*[get(port) for _ in range(REQUESTS)])


def first_line(program: subprocess.Popen[str]) -> list[str]:
    """Return the words of the first line that a program prints: address, port, handlers."""
    assert program.stdout is not None
    return program.stdout.readline().split()


def status_of_a_server_without_a_loader(start: Start, loop: str) -> int:
    """Return how uvicorn itself ends at SIGTERM, which has changed over its versions."""
    program = start(SERVER, loop, "bare")
    port = int(first_line(program)[1])
    assert len(asyncio.run(get_all(port))) == REQUESTS
    program.send_signal(signal.SIGTERM)
    _, errors = program.communicate(timeout=20)
    assert errors == ""
    return program.returncode


@both_loops
def test_requests_share_a_loader_and_sigterm_ends_the_server_as_it_would_without_one(
    start: Start, tmp_path: Path, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch goes to one request; uvicorn hears its signals throughout; nothing is left."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    program = start(SERVER, loop)
    _, port, *handlers = first_line(program)
    answers = asyncio.run(get_all(int(port)))
    below = descendants(program.pid)
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in (program.pid, *below)]
    program.send_signal(signal.SIGTERM)  # while both workers are at an item that takes for ever
    output, errors = program.communicate(timeout=20)
    assert errors == ""
    assert program.returncode == status_of_a_server_without_a_loader(start, loop)

    uvicorns_own = ["Server.handle_exit"] * 2
    assert handlers == uvicorns_own
    assert output.split() == uvicorns_own
    assert all(answer["handlers"] == uvicorns_own for answer in answers)
    batches = sorted((answer["batch"], answer["sum"]) for answer in answers)
    assert batches == [(k, sum(range(8 * k, 8 * k + 8))) for k in range(REQUESTS)]

    assert len(below) == 3  # two workers, and what they were forked from
    run_on("asyncio", until(lambda: not any(map(is_alive, below)), seconds=2))
    assert not any("/dev/shm/" in text for text in maps)  # what has no name cannot stay
    assert list(temporary.iterdir()) == []
