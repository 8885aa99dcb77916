"""Remote data under faults: epochs from a server that fails, stalls, dies and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from servers.clients import CLIENTS, name_of
from servers.fixtures import OBJECTS, Served, content, serving

from aioloader import DataGroup, Fetch, FetchPolicy, Loader
from aioloader.sources.object_store import wake_runtime
from aioloader.testing import no_leaks

ARRAYS = {"number": ((), "int64", "int32"), "sum": ((), "int64", "int32")}
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
EXPECTED = sorted((n, int(np.frombuffer(content(n), np.uint8).sum())) for n in range(OBJECTS))
KINDS = "reset,stall,truncate,lie,408,429,500,503"
LIMIT = 60.0


def load(payload: Any, arrays: Any, seed: int | None) -> None:
    """Note which object it is, and the sum of its bytes."""
    arrays["number"][...] = int.from_bytes(payload[:8], "big")
    arrays["sum"][...] = np.frombuffer(payload, np.uint8).sum()


@dataclass
class Tally:
    """What has been run."""

    runs: int = 0
    requests: int = 0
    retries: int = 0
    deaths: int = 0
    longest: float = 0.0
    wrong: list[str] = field(default_factory=list)


def settings_of(rng: random.Random) -> tuple[FetchPolicy, dict[str, Any], dict[str, Any]]:
    """Draw a policy, options of a loader, and settings of a server."""
    policy = FetchPolicy(
        concurrency=rng.choice([4, 16, 64, 256]),
        adaptive=rng.random() < 0.3,
        attempt_timeout=rng.choice([0.3, 1.0]),
        item_timeout=LIMIT,
        retries=1000,
        backoff=rng.choice([0.0, 0.01, 0.1]),
        max_backoff=0.5,
        hedge_quantile=rng.choice([None, 0.5, 0.9]),
        max_bytes=rng.choice([8_000, 100_000, None]),
    )
    loader = {
        "num_workers": rng.choice([0, 0, 1, 2]),
        "depth": rng.choice([1, 3, 16]),
        "deterministic": rng.random() < 0.7,
        "timeout": LIMIT,
    }
    server = {
        "latency": rng.choice([0.0, 0.005]),
        "jitter": rng.choice([0.0, 0.5]),
        "faults": rng.choice([0.0, 0.05, 0.2]),
        "kinds": KINDS,
        "seed": rng.randrange(1000),
    }
    return policy, loader, server


async def epoch(rng: random.Random, server: Served, tally: Tally) -> list[tuple[int, int]]:
    """Run an epoch, and kill the server at a random moment of it."""
    policy, options, settings = settings_of(rng)
    server.set(**settings)
    batch_size = rng.choice([1, 16, 64])
    dies = rng.random() < 0.3
    moment = rng.randrange(OBJECTS // batch_size)
    group = DataGroup(batch_size, range(OBJECTS), loader_arrays=ARRAYS)
    rows: list[tuple[int, int]] = []
    async with CLIENTS[rng.choice(list(CLIENTS))](server.url) as function:
        fetch = Fetch(function, policy, name=name_of)
        async with Loader(load, group, fetch=fetch, end_at=("epoch", 1), **options) as loader:
            async for batch in loader:
                arrays = batch.arrays
                rows += zip(arrays["number"].tolist(), arrays["sum"].tolist(), strict=True)
                del batch, arrays
                if dies and len(rows) // batch_size > moment:
                    dies = False
                    server.kill()
                    await asyncio.sleep(rng.random() / 2)
                    await asyncio.to_thread(server.restart)
                    tally.deaths += 1
        figures = fetch.statistics()
    tally.requests += figures.requests
    tally.retries += figures.retries
    return rows


def run_one(seed: int, server: Served, tally: Tally) -> str:
    """Run one epoch; returns what was wrong with it."""
    rng = random.Random(seed)
    started = time.monotonic()
    try:
        with asyncio.Runner(loop_factory=rng.choice(list(LOOPS.values()))) as runner:
            rows = runner.run(epoch(rng, server, tally))
    except Exception:
        return traceback.format_exc()
    tally.runs += 1
    tally.longest = max(tally.longest, time.monotonic() - started)
    return "" if sorted(rows) == EXPECTED else f"{len(rows)} rows, or others"


@contextlib.contextmanager
def prepared() -> Any:
    """Serve the objects."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "o").mkdir()
        for number in range(OBJECTS):
            (folder / name_of(number)).write_bytes(content(number))
        with serving(folder) as server:
            yield server


def main(seconds: float, seed: int | None) -> int:
    """Run epochs until the time is up; returns how many were wrong."""
    first = random.randrange(10**6) if seed is None else seed
    tally, deadline = Tally(), time.monotonic() + seconds
    number = first
    wake_runtime()
    with no_leaks(), prepared() as server:
        while time.monotonic() < deadline:
            wrong = run_one(number, server, tally)
            if wrong:
                tally.wrong.append(wrong)
                print(f"seed {number}: {wrong}", flush=True)
            number += 1
    print(
        f"{tally.runs} epochs, seeds {first} to {number - 1}: {len(tally.wrong)} wrong; "
        f"{tally.requests} requests, {tally.retries} retries, the server killed {tally.deaths} "
        f"times; the longest epoch {tally.longest:.1f} s"
    )
    return len(tally.wrong)
