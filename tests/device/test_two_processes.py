"""Two processes of one program: each brings its rows, and the arrays are global."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, json, sys
import jax, numpy as np

jax.config.update("jax_cpu_collectives_implementation", "gloo")
process, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)

from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from aioloader import prefetching_map, sharding_map

mesh = Mesh(np.array(jax.devices()), "d")
rows = NamedSharding(mesh, P("d"))
add = jax.jit(lambda x: x.sum(0), out_shardings=NamedSharding(mesh, P()))
shown = {"devices": (jax.local_device_count(), jax.device_count())}


def mine(size):  # process 0 has the rows 0, 1, ..., and process 1 those from 100 on
    return {"x": np.arange(size * 3).reshape(size, 3) + 100 * process}


def total(array):
    return np.asarray(add(array)).tolist()


async def collect(stream):
    return [batch async for batch in stream]


maps = {
    "for": lambda inputs, **o: list(sharding_map(inputs, rows, **o)),
    "async for": lambda inputs, **o: asyncio.run(collect(sharding_map(inputs, rows, **o))),
    "prefetched": lambda inputs, **o: list(prefetching_map(sharding_map(inputs, rows, **o))),
}
for name, sharded in maps.items():
    (batch,) = sharded([mine(4)])
    shards = batch["x"].addressable_shards
    local = sorted((s.index[0].start, np.asarray(s.data).tolist()) for s in shards)
    shown[name] = [batch["x"].shape, str(batch["x"].dtype), total(batch["x"]), local]
((batch, mask),) = sharding_map([mine(5)], rows, pad=True)
shown["padded"] = [batch["x"].shape, total(batch["x"]), total(mask.astype(int)), mask.shape]
for name, target, size in (("odd", rows, 5), ("foreign", jax.devices(), 4)):
    try:
        list(sharding_map([mine(size)], target))
    except ValueError as error:
        shown[name] = str(error)
(batch,) = sharding_map([mine(4)], jax.local_devices())
shown["own"] = [batch["x"].shape, np.asarray(batch["x"]).sum().item()]
print(json.dumps(shown), flush=True)
jax.distributed.shutdown()
"""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        port: int = listening.getsockname()[1]
    return port


@pytest.mark.timeout(180)
def test_global_arrays_are_made_of_what_each_process_brings() -> None:
    """Two devices in each of two processes, and a sum over all rows."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    port = str(free_port())
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(process), port],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for process in range(2)
    ]
    try:
        ended = [program.communicate(timeout=150) for program in programs]
    finally:
        for program in programs:
            program.kill()
    assert [program.returncode for program in programs] == [0, 0], ended
    for process, (output, _) in enumerate(ended):
        (line,) = [line for line in output.splitlines() if line.startswith("{")]  # Gloo prints, too
        shown = json.loads(line)
        assert shown["devices"] == [2, 4]
        rows = [[3 * k + 100 * process, 3 * k + 1 + 100 * process, 3 * k + 2 + 100 * process]
                for k in range(4)]  # fmt: skip
        halves = [[4 * process, rows[:2]], [4 * process + 2, rows[2:]]]
        for name in ("for", "async for", "prefetched"):
            assert shown[name] == [[8, 3], "int32", [436, 444, 452], halves]
        assert shown["padded"] == [[12, 3], [560, 570, 580], 10, [12]]
        assert "leaf ['x'] has the shape (5, 3), and its 5 rows" in shown["odd"]
        assert "among 2 devices" in shown["odd"]
        assert "devices must be this process's own" in shown["foreign"]
        assert shown["own"] == [[2, 2, 3], 66 + 1200 * process]
