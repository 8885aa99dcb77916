"""Remote objects: 5,000 of 64 KiB at 20 ms, each loader against `asyncio.gather` in turn.

The server is a process of its own, and what is compared are programs of theirs: an epoch to warm
up, and one that counts. The limit is `gather` with the same client, as many requests at once,
and nothing made of the payloads; a loader makes batches of 64 that end as arrays of JAX's.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from benchmarks.faults import bench_python
from benchmarks.peers.enclosure import ROOT
from benchmarks.peers.remote_task import OBJECT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = int(os.environ.get("REMOTE_ROUNDS", "3"))
COUNT = 5000
FEW = 600  # for loaders with so few connections that all objects would take minutes
LATENCY, JITTER = 0.02, 0.3
SLOW = {"slow_every": 100, "slow_factor": 20}
DECODE_SECONDS = 0.002

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gather, aiohttp": ("gather", {}),
    "ours, aiohttp": ("ours", {"workers": 0}),
    "gather, obstore": ("gather", {"client": "obstore"}),
    "ours, obstore": ("ours", {"workers": 0, "client": "obstore"}),
    "ours, aiohttp, 1 worker": ("ours", {}),
    "torch, 2 workers": ("torch", {"workers": 2, "count": FEW}),
    "torch, 16 workers": ("torch", {"workers": 16}),
    "torch, 64 workers": ("torch", {"workers": 64}),
    "SPDL, aiohttp": ("spdl", {}),
    "Grain, 16 threads": ("grain", {"workers": 16}),
    "Grain, 64 threads": ("grain", {"workers": 64}),
    "Grain, 128 threads": ("grain", {"workers": 128}),
    "Grain, 256 threads": ("grain", {"workers": 256}),
    "ours, aiohttp, 128 at once": ("ours", {"workers": 0, "concurrency": 128}),
    "ours, aiohttp, 256 at once": ("ours", {"workers": 0, "concurrency": 256}),
}
Result = dict[str, Any]


class Server:
    """The server, and how it is told what to be like."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self._stat = Path(f"/proc/{pid}/stat")

    def set(self, **settings: object) -> None:
        """Change what it is like."""
        query = "&".join(f"{name}={value}" for name, value in settings.items())
        urlopen(f"{self.url}/__set__?{query}").close()

    def cpu_seconds(self) -> float:
        """Return what it has used."""
        user, system = self._stat.read_text().split()[13:15]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def measure(self, loader: str, **task: object) -> Result:
        """Run one program."""
        told = json.dumps({"url": self.url, "count": COUNT, **task})
        command = (bench_python(), "-m", "benchmarks.peers.remote_program", loader, told)
        used, started = self.cpu_seconds(), time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode or not done.stdout:
            raise SystemExit(f"{loader}, {told}: {done.stderr}")
        result: Result = json.loads(done.stdout.splitlines()[-1])
        result["rate"] = result["rows"] / result["seconds"]
        elapsed = time.perf_counter() - started
        result["server"] = (self.cpu_seconds() - used) / elapsed
        return result


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve objects."""
    for number in range(COUNT):
        content = number.to_bytes(8, "big") * (OBJECT_BYTES // 8)
        (folder / f"{number:05}").write_bytes(content)
    program = ROOT / "tests" / "servers" / "web.py"
    command = (sys.executable, str(program), str(folder), "--jitter", str(JITTER))
    with subprocess.Popen(
        (*command, "--latency", str(LATENCY)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Server(process.stdout.readline().strip(), process.pid)
        process.stdin.close()


def per_cent(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def told(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def check(results: list[Result]) -> None:
    """Compare what came: a loader that brings anything else is void."""
    by_rows: dict[int, set[int]] = {}
    for result in results:
        by_rows.setdefault(result["rows"], set()).add(result["digest"])
    assert all(len(digests) == 1 for digests in by_rows.values()), by_rows


def throughput(server: Server) -> None:
    """Compare all loaders, and the limit."""
    rounds = [
        {name: server.measure(loader, **task) for name, (loader, task) in KINDS.items()}
        for _ in range(ROUNDS)
    ]
    check([result for each in rounds for result in each.values()])
    print("64 requests at once; objects/s, CPU per object, share of gather with the same client")
    for name in KINDS:
        limit = f"gather, {'obstore' if 'obstore' in name else 'aiohttp'}"
        mine = [each[name] for each in rounds]
        ratios = [each[name]["rate"] / each[limit]["rate"] for each in rounds]
        cpu = statistics.median(each["cpu"] / each["rows"] for each in mine) * 1e6
        rate = statistics.median(each["rate"] for each in mine)
        busy = max(each["server"] for each in mine)
        cpu_told = "" if "torch" in name else f"{cpu:5.0f} us"
        print(f"  {name:25} {rate:6.0f}/s {cpu_told:9} {told(ratios)}, server {busy:.0%} busy")


def slow_objects(server: Server) -> None:
    """Compare epochs with and without slow objects, and with hedging."""
    options = {"workers": 0, "concurrency": 256, "depth": 64}
    unordered: list[float] = []
    hedged: list[float] = []
    waits: dict[str, list[float]] = {"without hedging": [], "with hedging": []}
    for _ in range(ROUNDS):
        server.set(slow_every=0)
        free = server.measure("ours", ordered=False, **options)
        server.set(**SLOW)
        slow = server.measure("ours", ordered=False, **options)
        plain = server.measure("ours", **{**options, "depth": 3})
        hedging = server.measure("ours", hedge=0.95, **{**options, "depth": 3})
        check([free, slow, plain, hedging])
        unordered.append(slow["middle"] / free["middle"])
        hedged.append(hedging["rate"] / plain["rate"])
        waits["without hedging"] += plain["waits"]
        waits["with hedging"] += hedging["waits"]
    server.set(slow_every=0)
    print(
        "one object in 100 20 x slower, unordered, in the middle of an epoch: "
        f"{told(unordered)} of the rate without"
    )
    p99 = {name: per_cent(seconds, 0.99) * 1e3 for name, seconds in waits.items()}
    lowered = p99["without hedging"] / p99["with hedging"]
    print(
        f"in order, p99 of a batch's wait: {p99['without hedging']:.0f} ms without hedging, "
        f"{p99['with hedging']:.0f} ms with it ({lowered:.1f} x); the rate {told(hedged)} x"
    )


def decoding(server: Server) -> None:
    """Compare fetching and decoding together with the slower of the two."""
    import hashlib

    content = bytes(OBJECT_BYTES)
    best = min(timed(hashlib.sha256, content) for _ in range(20))
    times, count = max(round(DECODE_SECONDS / best), 1), 2000
    ratios, lags = [], []
    for _ in range(ROUNDS):
        server.set(latency=0, jitter=0)
        decode = server.measure("ours", decode=times, count=count)
        server.set(latency=LATENCY, jitter=JITTER)
        fetch = server.measure("ours", count=count)
        both = server.measure("ours", decode=times, count=count)
        check([decode, fetch, both])
        ratios.append(both["rate"] / min(decode["rate"], fetch["rate"]))
        lags.append(both["lag"] - both["idle_lag"])
    print(
        f"fetching and 2 ms of decoding, 1 worker: {told(ratios)} of the slower of the two alone; "
        f"p99 of the loop's lag beyond idle {statistics.median(lags) * 1e3:+.1f} ms"
    )


def timed(function: Any, *args: Any) -> float:
    started = time.perf_counter()
    function(*args)
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="aioloader-remote-") as name, serving(Path(name)) as s:
        s.measure("gather")  # the server has all objects in memory from then on
        throughput(s)
        slow_objects(s)
        decoding(s)


if __name__ == "__main__":
    main()
