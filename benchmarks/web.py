"""A small server of objects, as a process: each takes 20 ms to begin to come."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

LATENCY = 0.02
OBJECTS = 64
PIXELS = 128 * 128 * 3


def content(number: int) -> np.ndarray:
    """Return what an object is made of, an image that zlib can make a quarter of."""
    noise = np.random.default_rng(number).integers(0, 4, PIXELS, np.uint8)
    noise[0] = number
    return noise


class Answering(asyncio.Protocol):
    """One connection, which is kept: ``GET /NUMBER`` is all that it understands."""

    objects: tuple[bytes, ...] = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        *requests, self.received = (self.received + data).split(b"\r\n\r\n")
        loop = asyncio.get_running_loop()
        for request in requests:
            number = int(request.split(b" ", 2)[1].lstrip(b"/"))
            loop.call_later(LATENCY, self.answer, self.objects[number % OBJECTS])

    def answer(self, body: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


async def serve() -> None:
    Answering.objects = tuple(zlib.compress(content(k).tobytes(), 1) for k in range(OBJECTS))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Answering, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until who has started it lets go


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Run the server; the value is its address."""
    command = (sys.executable, "-m", "benchmarks.web")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"


if __name__ == "__main__":
    asyncio.run(serve())
