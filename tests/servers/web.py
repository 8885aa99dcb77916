"""An HTTP server that is as slow and as faulty as it is told; it runs as a program.

``python tests/servers/web.py DIRECTORY [--latency 0.02] [--faults 0.2 --kinds reset,stall]``
serves the files below DIRECTORY on 127.0.0.1, and prints its URL. It ends when its stdin does.

``GET`` and ``HEAD`` know ``Range``, ``If-Match``, ``If-None-Match``, ETags and keep-alive.
``/?list=PREFIX[&limit=N][&after=KEY]`` is a page of JSON, ``{"objects": [{"key", "size",
"etag"}], "next": KEY or null}``, in the order of keys. ``/__counts__`` is what it was asked for,
``/__counts__?reset=1`` forgets that, and ``/__set__?latency=0.1&faults=0`` changes settings.

What becomes of a request depends on its path, on how often that was asked for, and on the seed:
not on the order of requests.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import os
import socket
import statistics
import struct
import sys
import threading
from collections import Counter
from dataclasses import asdict, dataclass, fields
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop

KINDS = "reset,stall,truncate,lie,408,429,500,503"
REASONS = {
    200: "OK",
    206: "Partial Content",
    304: "Not Modified",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    412: "Precondition Failed",
    416: "Range Not Satisfiable",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
NORMAL = statistics.NormalDist()
LISTED = 1000


@dataclass
class Settings:
    """How slow and how faulty the server is.

    ``latency`` seconds pass before an answer, times a lognormal factor of median 1 and
    ``jitter`` as its sigma, times ``slow_factor`` for one request in ``slow_every``, and more
    in proportion when more than ``knee`` requests are in flight. A share of ``faults``
    requests meets one of ``kinds``: ``lie`` is a well-formed answer with half of the bytes,
    ``boast`` announces more than comes. ``always`` is a kind that all requests meet whose path
    contains ``victims``. 429 and 503 say ``retry_after``.
    """

    latency: float = 0.0
    jitter: float = 0.0
    slow_every: int = 0
    slow_factor: float = 20.0
    knee: int = 0
    faults: float = 0.0
    kinds: str = KINDS
    always: str = ""
    victims: str = ""
    retry_after: str = "0"
    seed: int = 0

    def change(self, name: str, text: str) -> None:
        """Set one, given as text."""
        setattr(self, name, type(getattr(self, name))(text))


@dataclass(slots=True)
class File:
    """A file's content, and what its headers say."""

    content: memoryview
    stamp: tuple[int, int]
    etag: str
    modified: str


class Folder:
    """The files below a folder, kept in memory for as long as they stay as they are."""

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)
        self._files: dict[str, File] = {}

    def get(self, key: str) -> File | None:
        """Return a file, or None if there is none."""
        path = os.path.normpath(os.path.join(self._root, key.lstrip("/")))
        if not path.startswith(self._root + os.sep):
            return None
        try:
            found = os.stat(path)
            stamp = (found.st_mtime_ns, found.st_size)
            file = self._files.get(path)
            if file is None or file.stamp != stamp:
                content = Path(path).read_bytes()
                etag = f'"{hashlib.md5(content).hexdigest()}"'
                modified = formatdate(found.st_mtime, usegmt=True)
                file = self._files[path] = File(memoryview(content), stamp, etag, modified)
        except OSError:
            return None
        return file

    def page(self, prefix: str, after: str, limit: int) -> dict[str, Any]:
        """Return one page of the listing."""
        keys = []
        for folder, _, names in os.walk(self._root):
            below = os.path.relpath(folder, self._root)
            keys += [name if below == "." else f"{below}/{name}" for name in names]
        keys = sorted(key for key in keys if key.startswith(prefix) and key > after)
        objects = [
            {"key": key, "size": len(file.content), "etag": file.etag}
            for key in keys[:limit]
            if (file := self.get(key)) is not None
        ]
        return {"objects": objects, "next": keys[limit - 1] if len(keys) > limit else None}


class Site:
    """What all connections share: the folder, the settings and the counts."""

    def __init__(self, folder: Folder, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.connections: set[Connection] = set()
        self.asked: Counter[str] = Counter()
        self.forget()

    def forget(self) -> None:
        """Count from zero."""
        self.counts: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()
        self.in_flight = self.most_in_flight = 0

    def enter(self, path: str) -> None:
        """Note a request."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.counts["requests"] += 1
        self.paths[path] += 1
        self.asked[path] += 1

    def leave(self) -> None:
        """Note that it was answered, or that nobody waits for an answer."""
        self.in_flight = max(self.in_flight - 1, 0)

    def fate(self, path: str) -> tuple[float, str]:
        """Return the seconds until the answer, and the kind of fault or nothing."""
        now = self.settings
        text = f"{now.seed} {self.asked[path]} {path}".encode()
        drawn = struct.unpack("<4I", hashlib.blake2b(text, digest_size=16).digest())
        jitter, slow, fault, kind = ((number + 0.5) / 2**32 for number in drawn)
        seconds = now.latency
        if now.jitter:
            seconds *= math.exp(now.jitter * NORMAL.inv_cdf(jitter))
        if now.slow_every and slow * now.slow_every < 1:
            seconds *= now.slow_factor
        if now.knee:
            seconds *= max(self.in_flight / now.knee, 1.0)
        if now.always and now.victims in path:
            return seconds, now.always
        kinds = now.kinds.split(",")
        return seconds, kinds[int(kind * len(kinds))] if fault < now.faults else ""

    def report(self) -> dict[str, Any]:
        """Return the counts."""
        figures = {"in_flight": self.in_flight, "most_in_flight": self.most_in_flight}
        open_now = {"connections": len(self.connections)}
        return {**self.counts, **figures, **open_now, "paths": self.paths}


class Connection(asyncio.Protocol):
    """One client: its requests one after another."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._buffer = b""
        self._transport: Any = None
        self._timer: asyncio.Handle | None = None
        self._is_busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._site.connections.add(self)
        self._site.counts["accepted"] += 1

    def connection_lost(self, error: Exception | None) -> None:
        self._site.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._is_busy:
            self._is_busy = False
            self._site.counts["abandoned"] += 1
            self._site.leave()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._next()

    def abort(self) -> None:
        """End the connection with a reset."""
        linger = struct.pack("ii", 1, 0)
        self._transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, linger
        )
        self._transport.abort()

    def _next(self) -> None:
        while not self._is_busy and not self._transport.is_closing():
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            self._buffer = rest
            first, *lines = head.decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ", 2)
            headers = {}
            for line in lines:
                name, _, value = line.partition(":")
                headers[name.strip().lower()] = value.strip()
            self._ask(method, target, headers)

    def _ask(self, method: str, target: str, headers: dict[str, str]) -> None:
        url = urlsplit(target)
        path, query = unquote(url.path), dict(parse_qsl(url.query, keep_blank_values=True))
        if path in ("/__counts__", "/__set__"):
            self._json(self._control(path, query))
            return
        site = self._site
        site.enter(path)
        self._is_busy = True
        seconds, fault = site.fate(path)
        arguments = (method, path, query, headers, fault)
        if seconds > 0:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(seconds, self._answer, *arguments)
        else:
            self._answer(*arguments)

    def _control(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        site = self._site
        if path == "/__set__":
            for name, text in query.items():
                site.settings.change(name, text)
            return asdict(site.settings)
        report = site.report()
        if query.get("reset"):
            site.forget()
            site.asked.clear()
        return report

    def _answer(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], fault: str
    ) -> None:
        self._timer = None
        if fault:
            self._site.counts[f"fault {fault}"] += 1
        if fault == "stall":
            return  # until the client goes away
        self._is_busy = False
        self._site.leave()
        if fault == "reset":
            self.abort()
        elif fault.isdecimal():
            after = (f"Retry-After: {self._site.settings.retry_after}",)
            self._send(int(fault), after if fault in ("429", "503") else ())
        elif "list" in query:
            limit = int(query.get("limit", LISTED))
            self._site.counts["lists"] += 1
            self._json(self._site.folder.page(query["list"], query.get("after", ""), limit))
        else:
            self._serve(method, path, headers, fault)
        if self._buffer:
            self._next()

    def _serve(self, method: str, path: str, headers: dict[str, str], fault: str) -> None:
        file = self._site.folder.get(path)
        self._site.counts["heads" if method == "HEAD" else "gets"] += 1
        if file is None or method not in ("GET", "HEAD"):
            self._send(404 if file is None else 405)
            return
        about = [f"ETag: {file.etag}", f"Last-Modified: {file.modified}", "Accept-Ranges: bytes"]
        if headers.get("if-match", file.etag) not in (file.etag, "*"):
            self._send(412, about)
            return
        if headers.get("if-none-match") == file.etag:
            self._send(304, about)
            return
        status, body, total = 200, file.content, len(file.content)
        wanted = parse_range(headers.get("range", ""), total)
        if wanted is not None:
            start, stop = wanted
            if start >= total:
                self._send(416, [*about, f"Content-Range: bytes */{total}"])
                return
            status, body = 206, body[start:stop]
            about.append(f"Content-Range: bytes {start}-{stop - 1}/{total}")
            self._site.counts["ranges"] += 1
        self._send(status, about, body, fault=fault, is_head=method == "HEAD")

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self._send(200, ["Content-Type: application/json"], memoryview(body))

    def _send(
        self,
        status: int,
        headers: Any = (),
        body: memoryview = memoryview(b""),  # noqa: B008
        *,
        fault: str = "",
        is_head: bool = False,
    ) -> None:
        if fault == "lie":
            body = body[: len(body) // 2]
        length = len(body) + (1 if fault == "boast" else 0)
        lines = [f"HTTP/1.1 {status} {REASONS[status]}", f"Content-Length: {length}", *headers]
        head = "\r\n".join([*lines, "", ""]).encode()
        if fault == "truncate":
            body = body[: len(body) // 2]
        sent = memoryview(b"") if is_head else body
        self._site.counts["bytes"] += len(sent)
        self._transport.writelines([head, sent])
        if fault == "truncate":
            self._transport.close()


def parse_range(text: str, total: int) -> tuple[int, int] | None:
    """Return the start and the end of a range, or None if there is none to serve.

    >>> parse_range("bytes=2-5", 10), parse_range("bytes=-3", 10), parse_range("bytes=8-", 10)
    ((2, 6), (7, 10), (8, 10))
    """
    unit, _, asked = text.partition("=")
    first, dash, last = asked.partition("-")
    if unit != "bytes" or not dash or "," in asked:
        return None
    if not first:
        return max(total - int(last), 0), total
    return int(first), min(int(last) + 1, total) if last else total


async def serve(site: Site, port: int) -> None:
    """Serve until stdin ends."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def wait_for_the_end() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    server = await loop.create_server(lambda: Connection(site), "127.0.0.1", port, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await ended.wait()
    server.close()
    for connection in list(site.connections):
        connection.abort()


def main() -> None:
    parser = argparse.ArgumentParser(description="A slow and faulty HTTP server.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--port", type=int, default=0)
    for field in fields(Settings):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    folder, port = Folder(options.pop("directory")), options.pop("port")
    loop = new_event_loop()
    loop.run_until_complete(serve(Site(folder, Settings(**options)), port))


if __name__ == "__main__":
    main()
