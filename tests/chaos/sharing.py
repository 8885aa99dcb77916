"""Sharing: programs that fill and read one cache on disk, and are killed one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import signal
import tempfile
import time
import warnings
from pathlib import Path
from typing import NoReturn

from support import digests

from aioloader import DataGroup, Loader
from chaos.consuming import ARRAYS, load

PROGRAMS, LENGTH = 4, 240
EVERY_SECONDS = 0.5


def make(location: str | None, workers: int = 0) -> Loader[int]:
    """Return a loader of two epochs, half of whose batches may come from the cache."""
    group = DataGroup(
        8, range(LENGTH), loader_arrays=ARRAYS, cache_location=location, shuffle_later="batchwise"
    )
    return Loader(load, group, num_workers=workers, end_at=("epoch", 2))


def program(location: str, clean: list[str], seed: int, report: int) -> NoReturn:
    """Read all of it again and again, and remove some of the entries each time."""
    draw = random.Random(seed)

    async def again() -> None:
        while True:
            loader = make(location, workers=seed % 2)
            right = await digests(loader) == clean
            counts = loader.statistics().cache
            bad = counts.damaged + counts.mismatched + counts.failed
            os.write(report, b"%d %d %d\n" % (right, counts.hits, bad))
            for path in Path(location).rglob("*.batch"):
                if draw.random() < 0.3:
                    path.unlink(missing_ok=True)

    try:
        asyncio.run(again())
    finally:
        os._exit(1)


def main(seconds: float = 60.0, seed: int = 0) -> int:
    """Kill one every half second; returns 1 if any program saw anything that was not right."""
    warnings.simplefilter("ignore")  # jax warns of forks; it has not started anything yet
    clean = _in_a_process_of_its_own()
    draw, reading_writing = random.Random(seed), os.pipe()
    reading, report = reading_writing
    news, killed = b"", 0
    with tempfile.TemporaryDirectory() as location:
        running = [_start(location, clean, number, report) for number in range(PROGRAMS)]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            news += _read(reading, EVERY_SECONDS)
            _kill(running.pop(draw.randrange(PROGRAMS)))
            killed += 1
            running.append(_start(location, clean, PROGRAMS + killed, report))
        for pid in running:
            _kill(pid)
        news += _read(reading, 0.0)
        last = _in_a_process_of_its_own(location)
        left = len(list(Path(location).rglob("*.tmp")))
    runs = [[int(word) for word in line.split()] for line in news.decode().splitlines()]
    wrong = sum(not right for right, _, _ in runs) + (last != clean)
    hits, bad = sum(hits for _, hits, _ in runs), sum(bad for _, _, bad in runs)
    print(
        f"{killed} programs killed, {len(runs)} runs of {len(clean)} batches, {hits} batches from "
        f"the cache; {wrong} digests wrong, {bad} entries bad, {left} unfinished files left"
    )
    return int(bool(wrong or bad or left) or not hits)


def _start(location: str, clean: list[str], seed: int, report: int) -> int:
    pid = os.fork()
    if pid == 0:
        program(location, clean, seed, report)
    return pid


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _read(reading: int, seconds: float) -> bytes:
    """Return what is reported within some time."""
    end, news = time.monotonic() + seconds, b""
    while select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
        news += os.read(reading, 65536)
    return news


def _in_a_process_of_its_own(location: str | None = None) -> list[str]:
    """Return the digests of a run, without starting JAX here: this process has to fork."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.write(writing, " ".join(asyncio.run(digests(make(location)))).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        found = pipe.read().split()
    os.waitpid(pid, 0)
    return found
