"""Several processes fill and read one cache, and some are killed: the others do not notice."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from support import script
from test_writing import HELPERS

if TYPE_CHECKING:
    from pathlib import Path

SHARED = """
import asyncio, json, logging, os, random, select, signal, sys
from pathlib import Path

from aioloader._caches import writing
from disk_bench import fill, is_right, key, opened, unfinished

location, kills = Path(sys.argv[1]), int(sys.argv[2])
writing._CHUNK = 1000  # so that there are more moments in which to be killed
logging.disable()
KEYS = [key(index) for index in range(12)]


async def work(seed, report):
    chance = random.Random(seed)
    while True:
        async with opened(location) as cache:
            for _ in range(8):
                of = chance.choice(KEYS)
                found = await cache.read(of)
                if found is not None and not is_right(found, of):
                    os.write(report, b"wrong ")
                if found is None or chance.random() < 0.5:
                    await fill(cache, of)
            counts = cache.counts
            if counts.failed or counts.damaged or counts.mismatched:
                os.write(report, f"{counts} ".encode())
        os.write(report, b".")


def start(seed):
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        asyncio.run(work(seed, writing_end))
        os._exit(1)
    return pid


reading, writing_end = os.pipe()
chance = random.Random(1)
running = [start(seed) for seed in range(4)]
said = b""
for number in range(kills):  # each after some news, whoever they are from
    for _ in range(3):
        assert select.select([reading], [], [], 30)[0], "nobody goes on"
        said += os.read(reading, 1000)
    victim = running.pop(chance.randrange(4))
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    running.append(start(100 + number))
for pid in running:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


async def look():
    async with opened(location) as cache:
        left = unfinished(location)
        right = 0
        for of in KEYS:
            found = await cache.read(of)
            right += found is None or is_right(found, of)
    return {"left": left, "right": right, "hits": cache.counts.hits}


print(json.dumps({"said": said.decode().strip("."), **asyncio.run(look())}))
"""


def test_processes_that_are_killed_harm_nobody(tmp_path: Path) -> None:
    """No process reads a wrong byte, none fails to write, and what is left over is swept."""
    program = script(tmp_path, HELPERS + SHARED, str(tmp_path / "cache"), "25")
    out, err = program.communicate(timeout=55)
    assert (program.returncode, err) == (0, "")
    result = json.loads(out)
    assert result["said"].replace(".", "") == ""
    assert result["left"] == []
    assert result["right"] == 12
    assert result["hits"] > 6
