"""The limit of starting: one child process with numpy, forked by a server, that does one item."""

from __future__ import annotations

import multiprocessing
import time
from typing import Any

from benchmarks.consumer import pss
from benchmarks.loaders.worker import answer

PACKAGES = ("numpy",)


def start() -> dict[str, Any]:
    """Start the child; returns the seconds to its answer, and its memory."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["numpy"])
    ours, its = context.Pipe()
    started = time.perf_counter()
    process = context.Process(target=answer, args=(its,))
    process.start()
    assert ours.recv() == 8
    seconds = time.perf_counter() - started
    assert process.pid is not None
    used = pss(process.pid) / 1024
    ours.send(None)
    process.join()
    return {"first_ms": seconds * 1e3, "gap_ms": seconds * 1e3, "worker_mib": used, "wrong": ""}
