"""The limit of what computes or waits for long: bare processes that fill rows for nobody.

Whoever is free takes the next item, so that none waits while there is work.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.loaders.worker import TOKEN

if TYPE_CHECKING:
    from benchmarks.loaders import Work

PACKAGES = ("numpy",)


def measure(work: Work) -> dict[str, float]:
    """Return the seconds that all workers were busy, divided by their number."""
    tokens, ready, go = os.pipe(), os.pipe(), os.pipe()
    given = (tokens[0], ready[1], go[0])
    command = (sys.executable, "-m", "benchmarks.loaders.worker", "count")
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=given)
        for _ in range(work.num_workers)
    ]
    for worker in workers:
        assert worker.stdin is not None
        pickle.dump((work, *given), worker.stdin)
        worker.stdin.flush()
    for _ in workers:
        os.read(ready[0], 1)
    os.write(go[1], b"g" * len(workers))
    for number in range(work.batches * work.batch_size):
        os.write(tokens[1], TOKEN.pack(number))
    os.close(tokens[1])
    told = [json.loads(worker.communicate()[0]) for worker in workers]
    for end in (*given, ready[0], go[1]):
        os.close(end)
    rows = sum(each["rows"] for each in told)
    seconds = sum(each["seconds"] for each in told) / len(workers)
    cpu = sum(each["cpu"] for each in told)
    return {"rate": rows / seconds, "cpu_us": cpu / rows * 1e6, "rows": rows}
