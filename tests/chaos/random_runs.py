"""Random runs: random faults in random configurations, each compared with a clean run."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import uvloop
from support import digest_of

from aioloader import BatchTimeoutError, LoadError
from aioloader._faults import LOG_ENVIRONMENT, faults
from aioloader.testing import no_leaks
from chaos import consuming
from chaos.configurations import Configuration

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioloader import Loader

LIMIT_SECONDS = 60
LOOPS: tuple[Callable[[], asyncio.AbstractEventLoop], ...] = (
    asyncio.new_event_loop,
    uvloop.new_event_loop,
)


class Stop(Exception):
    """What a consumer raises in the middle of an epoch."""


@dataclass
class Tally:
    """What the runs have brought so far."""

    runs: int = 0
    batches: int = 0
    rows: int = 0
    armed: int = 0
    deaths: int = 0
    failed: int = 0
    dropped: int = 0
    cancelled: int = 0
    hits: int = 0
    wrong: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        wrong = {name: self.wrong[name] for name in ("lost", "twice", "corrupt", "left behind")}
        rest = sum(self.wrong.values()) - sum(wrong.values())
        return (
            f"{self.runs} runs, {self.armed} faults armed, {self.deaths} workers died, "
            f"{self.cancelled} waits cancelled; {self.batches} batches with {self.rows} rows "
            f"delivered, {self.hits} of them from a cache, {self.failed} errors in their turn, "
            f"{self.dropped} batches dropped; "
            + ", ".join(f"{count} {name}" for name, count in wrong.items())
            + f", {rest} other"
        )


@dataclass
class Record:
    """What one run of one configuration has delivered, over all its parts."""

    digests: list[str] = field(default_factory=list)
    rows: int = 0
    failed: int = 0
    dropped: int = 0
    deaths: int = 0
    cancelled: int = 0
    hits: int = 0
    errors: list[str] = field(default_factory=list)


async def part(loader: Loader[Any], run: Configuration, record: Record, stop: int | None) -> Any:
    """Run a loader to its end, or stop it as the consumer does; returns its state then."""
    draw, held, taken = random.Random(run.seed), [], 0
    try:
        async with loader:
            try:
                while taken != stop:
                    batch = await following(loader, run, record, draw)
                    if batch is None:
                        return None
                    record.digests.append(digest_of(batch))
                    record.rows += len(batch.indices)
                    held.append((batch, record.digests[-1]))
                    taken += 1
                    while len(held) > run.consumer.holds:
                        check(*held.pop(0))
                    if run.consumer.slow:
                        await asyncio.sleep(run.consumer.slow)
                    del batch
                return await ended_by(run.consumer.stop, loader, run, record, draw)
            finally:
                statistics = loader.statistics()
                record.dropped += statistics.dropped
                record.deaths += statistics.worker_deaths
                record.hits += statistics.cache.hits
    except Stop:
        return loader.get_state()
    finally:
        for pair in held:
            check(*pair)


async def following(
    loader: Loader[Any], run: Configuration, record: Record, draw: random.Random
) -> Any:
    """Return the next batch, or None at the end; waits are cancelled now and then."""
    while True:
        try:
            if draw.random() < run.consumer.cancels:
                async with asyncio.timeout(draw.choice([0, 0.001, 0.01])):
                    return await anext(loader)
            return await anext(loader)
        except StopAsyncIteration:
            return None
        except BatchTimeoutError:
            raise
        except TimeoutError:
            record.cancelled += 1
        except LoadError as error:
            record.failed += 1
            record.errors.append(f"{type(error).__name__}: {error}")


async def ended_by(
    stop: str, loader: Loader[Any], run: Configuration, record: Record, draw: random.Random
) -> Any:
    """End a run before its end; returns the state to go on from."""
    if stop == "raise":
        raise Stop
    if stop == "interrupt":
        loader.interrupt()
        while (batch := await following(loader, run, record, draw)) is not None:
            record.digests.append(digest_of(batch))
            record.rows += len(batch.indices)
            del batch
    if stop == "cancel":
        waiting = asyncio.ensure_future(anext(loader))
        await asyncio.sleep(draw.choice([0, 0.002]))
        waiting.cancel()
        await asyncio.wait([waiting])
        if not waiting.cancelled() and waiting.exception() is None:
            record.digests.append(digest_of(waiting.result()))
            record.rows += len(waiting.result().indices)
        elif not waiting.cancelled() and isinstance(waiting.exception(), LoadError):
            record.failed += 1
            record.errors.append(repr(waiting.exception()))
    if stop == "aclose":
        await loader.aclose()
    return loader.get_state()


def check(batch: Any, digest: str) -> None:
    """See that a batch that was held is what it was."""
    if digest_of(batch) != digest:
        raise AssertionError("corrupt: a batch changed while it was held")


async def whole(run: Configuration) -> Record:
    """Run a configuration in one part or, where its consumer stops, in two."""
    record = Record()
    with tempfile.TemporaryDirectory() as folder:
        state = await part(run.loader(folder), run, record, run.consumer.stops_after)
        if state is not None:
            await part(run.loader(folder, state=state), run, record, None)
        if left := list(Path(folder).rglob("*.tmp")):
            raise AssertionError(f"left behind: {left}")
    return record


def judge(run: Configuration, record: Record, clean: list[str]) -> str:
    """Say what is wrong with a run, if anything is."""
    missing, extra = Counter(clean), Counter(record.digests)
    missing.subtract(record.digests)
    extra.subtract(clean)
    lost, more = sum(c for c in missing.values() if c > 0), sum(c for c in extra.values() if c > 0)
    if any(d not in set(clean) for d in record.digests):
        return "corrupt"
    if more:
        return "twice"
    if lost and not run.may_fail:
        return "lost"
    if lost > record.failed + record.dropped:
        return "lost"
    left = [digest for digest in clean if missing[digest] <= 0]
    in_order = run.options["deterministic"] and not lost
    return "out of order" if in_order and record.digests != left else ""


def run_one(seed: int, tally: Tally) -> str:
    """Run the configuration of a seed; returns what is wrong with it, if anything is."""
    run = Configuration.of(seed)
    factory = LOOPS[seed % 2]
    faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
    try:
        clean = Record()
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(part(run.loader(plain=True), Configuration(seed, "thread"), clean, None))
        with no_leaks(), asyncio.Runner(loop_factory=factory) as runner, faults(*run.faults):
            record = runner.run(whole(run))
        wrong = judge(run, record, clean.digests)
        if wrong:
            print(
                f"{len(record.digests)} of {len(clean.digests)} batches", *record.errors, sep="\n  "
            )
        count(tally, run, record)
    except Exception as error:
        wrong = "left behind" if "left behind" in str(error) else "corrupt"
        wrong = wrong if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        traceback.print_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()
    tally.wrong[wrong.split(":")[0]] += bool(wrong)
    return wrong


def count(tally: Tally, run: Configuration, record: Record) -> None:
    """Add a run to what there was."""
    tally.runs += 1
    tally.batches += len(record.digests)
    tally.rows += record.rows
    tally.armed += len(run.faults)
    tally.deaths += record.deaths
    tally.failed += record.failed
    tally.dropped += record.dropped
    tally.cancelled += record.cancelled
    tally.hits += record.hits


def main(seconds: float = 600.0, first_seed: int | None = None, runs: int | None = None) -> int:
    """Run for some time; prints each seed that went wrong, and returns how many did."""
    with tempfile.NamedTemporaryFile("r") as log:
        os.environ[LOG_ENVIRONMENT] = log.name  # workers have it from their server
        try:
            wrong = run_all(seconds, first_seed, runs)
        finally:
            del os.environ[LOG_ENVIRONMENT]
        struck = Counter(log.read().split())
    each = ", ".join(f"{name} {n}" for name, n in sorted(struck.items()))
    print(f"{sum(struck.values())} faults struck: {each}")
    return wrong


def run_all(seconds: float, first_seed: int | None, runs: int | None) -> int:
    """Run one seed after the other."""
    logging.getLogger("aioloader").setLevel(logging.CRITICAL)
    with contextlib.suppress(ValueError):
        cloudpickle.register_pickle_by_value(consuming)
    first = random.SystemRandom().randrange(10**6) if first_seed is None else first_seed
    print(f"seeds from {first} on", flush=True)
    for factory in LOOPS:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.sleep(0))
    tally, end, seed = Tally(), time.monotonic() + seconds, first
    while time.monotonic() < end and (runs is None or seed < first + runs):
        if wrong := run_one(seed, tally):
            print(f"seed {seed}: {wrong}: {Configuration.of(seed)}", flush=True)
        seed += 1
        if sys.stderr.isatty():
            print(f"\r{tally}", end="", file=sys.stderr, flush=True)
    print(tally)
    return sum(tally.wrong.values())
