"""Writing: whole or not at all, whoever is killed, and whatever the disk does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from disk_bench import (
    NAME,
    Warnings,
    batch,
    extras,
    fill,
    is_right,
    key,
    opened,
    path_of,
    unfinished,
)
from support import script

from aioloader._caches import writing
from aioloader._caches.directory import Directory
from aioloader._caches.disk import CacheCounts
from aioloader.testing import Fault, faults

HELPERS = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"

SWEEP = """
import asyncio, json, logging, os, shutil, sys
from pathlib import Path

from aioloader._caches import writing
from aioloader.testing import Fault, faults
from disk_bench import fill, is_right, key, opened, path_of, unfinished

location, existing = Path(sys.argv[1]), sys.argv[2]
writing._CHUNK = 2000
logging.disable()


async def write(visit):
    with faults(Fault("cache_write", "kill", visit=visit)):
        async with opened(location, fsync=True) as cache:
            await fill(cache, key())


async def look():
    async with opened(location) as cache:
        left = unfinished(location)
        found = await cache.read(key())
        right = found is not None and is_right(found, key())
        await fill(cache, key())
        again = await cache.read(key())
    return {
        "left": left,
        "right": right,
        "wrong": found is not None and not right,
        "again": again is not None and is_right(again, key()),
    }


def prepare():
    if existing == "nothing":
        shutil.rmtree(location)
    elif existing == "damaged":
        path = path_of(location, key())
        path.write_bytes(path.read_bytes()[:-1])


results = []
asyncio.run(look())
for visit in range(100):
    prepare()
    child = os.fork()
    if child == 0:
        asyncio.run(write(visit))
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    results.append({"killed": killed, "before": unfinished(location), **asyncio.run(look())})
    if not killed:
        break
print(json.dumps(results))
"""


@pytest.mark.parametrize("existing", ["nothing", "damaged", "right"])
def test_a_kill_between_any_two_system_calls_leaves_nothing_wrong(
    tmp_path: Path, existing: str
) -> None:
    """Nothing wrong is served, no unfinished file outlives the next opening, and it writes."""
    program = script(tmp_path, HELPERS + SWEEP, str(tmp_path / "cache"), existing)
    out, err = program.communicate(timeout=55)
    assert (program.returncode, err) == (0, "")
    results = json.loads(out)
    assert [result["killed"] for result in results] == [True] * (len(results) - 1) + [False]
    assert len(results) > 12, "there are that many system calls"
    assert sum(len(result["before"]) for result in results) >= 3, "some were unfinished"
    for visit, result in enumerate(results):
        assert not result["wrong"], visit
        assert result["left"] == [], visit
        assert result["again"], visit
    assert results[-1]["right"]
    if existing == "right":  # what was there before is there throughout
        assert all(result["right"] for result in results)


async def test_unfinished_files_of_living_processes_stay(tmp_path: Path) -> None:
    """Whether that is seen by the process, or, from another container, by its lock."""
    async with opened(tmp_path):
        pass
    directory = Directory.open(tmp_path / NAME)
    mine = writing.Temporary(directory)
    mine.open()  # and not locked, as on a file system without locks
    other = tmp_path / NAME / ".999999999-1-0.tmp"  # of no process that can be seen
    with open(other, "w") as file:
        writing.fcntl.flock(file, writing.fcntl.LOCK_EX)
        async with opened(tmp_path):
            assert sorted(unfinished(tmp_path)) == sorted([mine.name, other.name])
    async with opened(tmp_path, readonly=True):
        assert other.exists()
    async with opened(tmp_path):
        assert unfinished(tmp_path) == [mine.name]
    mine.end()
    mine.end()
    assert unfinished(tmp_path) == []


async def test_a_process_with_the_same_number_is_another_process(tmp_path: Path) -> None:
    """Numbers of processes come again, times at which they started do not."""
    async with opened(tmp_path):
        pass
    (tmp_path / NAME / f".{os.getpid()}-1-0.tmp").write_text("of an earlier one")
    async with opened(tmp_path):
        assert unfinished(tmp_path) == []


async def test_an_error_in_any_step_costs_the_entry(tmp_path: Path) -> None:
    """It is counted, the first one is logged, no file is left, and the next write is made."""
    async with opened(tmp_path):
        pass
    with Warnings() as warnings:
        for visit in range(30):
            with faults(Fault("cache_write", "raise", visit=visit)):
                async with opened(tmp_path, cachers=1) as cache:
                    await fill(cache, key(0))
                    await fill(cache, key(1))
                    counts = cache.counts
                    is_over = counts.failed == 0
                    found = await cache.read(key(1))
                    assert found is not None
                    assert is_right(found, key(1))
            assert unfinished(tmp_path) == []
            if is_over:
                break
            assert counts == CacheCounts(hits=1, written=1, failed=1)
    assert visit > 8
    assert len(warnings) == visit
    assert "further failures are only counted" in warnings[0]


class Taking:
    """A file that takes a share of what it is given, and notes up to where it was asked to."""

    def __init__(self, file: Any, share: float) -> None:
        self._file, self._share, self._size = file, share, 0
        self.asked: list[int] = []

    async def write(self, chunk: bytes) -> int:
        self.asked.append(self._size + len(chunk))
        taken: int = await self._file.write(chunk[: max(1, int(self._share * len(chunk)))])
        self._size += taken
        return taken


@pytest.mark.parametrize("share", [1.0, 0.7])
async def test_files_are_written_up_to_where_chunks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """So the system keeps each chunk in one piece, also when it takes less than it is given."""
    files: list[Taking] = []
    real = writing.aiofiles.open

    async def taking(*args: Any, **options: Any) -> Taking:
        files.append(Taking(await real(*args, **options), share))
        return files[-1]

    monkeypatch.setattr(writing, "_CHUNK", 1000)
    monkeypatch.setattr(writing.aiofiles, "open", taking)
    async with opened(tmp_path) as cache:
        await fill(cache, key())
        found = await cache.read(key())
        assert found is not None
        assert is_right(found, key())
    (file,) = files
    assert len(file.asked) > 6
    assert not any(end % 1000 for end in file.asked if end != file.asked[-1])


async def test_a_disk_that_never_answers_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nothing has moved for long enough, closing gives up, and says so."""
    monkeypatch.setattr(writing, "_STALLED_SECONDS", 0.1)
    monkeypatch.setattr(writing, "_END_SECONDS", 0.1)
    go_on = threading.Event()

    def stuck() -> Any:
        go_on.wait(50)
        return batch(key())["label"]

    with Warnings() as warnings:
        async with opened(tmp_path, cachers=1) as cache:
            for index in range(3):
                cache.write(key(index), {**batch(key()), "label": stuck}, {}, None)
    assert cache.counts.failed == 3
    assert len(warnings) == 1
    assert "3 entries" in warnings[0]
    go_on.set()


FULL = """
import asyncio, json, resource, signal, sys
from pathlib import Path

from disk_bench import Warnings, fill, is_right, key, opened, unfinished

location, limit = Path(sys.argv[1]), int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


async def main():
    keys = [key(index) for index in range(20)]
    with Warnings() as warnings:
        async with opened(location) as cache:
            for each in keys:
                await fill(cache, each)
                assert cache.pending == 0
            wrong = 0
            for each in keys:
                found = await cache.read(each)
                wrong += found is not None and not is_right(found, each)
            counts = cache.counts
    print(json.dumps([len(warnings), counts.written, counts.failed, counts.hits, counts.misses,
                      wrong, unfinished(location), warnings]))


asyncio.run(main())
"""


def in_namespace(mount: str, tmp_path: Path) -> list[str] | None:
    """Return the start of a command that runs with a mount of its own, if that is allowed."""
    start = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    try:
        allowed = subprocess.run([*start, "true"], capture_output=True).returncode == 0
    except OSError:
        return None
    return start if allowed else None


def run_in(start: list[str] | None, program: str, *args: str) -> Any:
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(HELPERS + program)
        file.flush()
        done = subprocess.run(
            [*(start or []), sys.executable, file.name, *args],
            capture_output=True,
            text=True,
            timeout=50,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_full_disk_costs_the_cache_and_not_the_program(tmp_path: Path) -> None:
    """One warning; what was written before is served, the rest is counted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    # An entry has twelve kilobytes. Where nothing may be mounted, files have a limit instead.
    start = in_namespace(f"mount -t tmpfs -o size=100k tmpfs {disk}", tmp_path)
    told, written, failed, hits, misses, wrong, left, texts = run_in(
        start, FULL, str(disk), "0" if start else "8000"
    )
    assert (told, wrong, left) == (1, 0, [])
    assert written + failed == hits + misses == 20
    assert written == hits
    assert failed > 0
    if start:
        assert written > 3
        assert "No space left" in texts[0]


READ_ONLY = """
import asyncio, errno, json, os, sys
from pathlib import Path

from disk_bench import Warnings, fill, is_right, key, opened, unfinished

location = Path(sys.argv[1])
if sys.argv[2] == "refuse":
    real = os.open

    def refusing(path, flags, *args, **options):
        if flags & os.O_CREAT and str(path).endswith(".tmp"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *args, **options)

    os.open = refusing


async def main():
    with Warnings() as warnings:
        async with opened(location) as cache:
            found = await cache.read(key())
            right = found is not None and is_right(found, key())
            await fill(cache, *[key(index) for index in range(1, 6)])
            counts = cache.counts
    print(json.dumps([len(warnings), right, counts.written, counts.failed, warnings]))


asyncio.run(main())
"""


async def test_a_directory_that_cannot_be_written_to_is_read(tmp_path: Path) -> None:
    """And costs one warning, though nobody said that it is read-only."""
    disk = tmp_path / "disk"
    async with opened(disk) as cache:
        await fill(cache, key())
    start = in_namespace(f"mount --bind {disk} {disk} && mount -o remount,ro,bind {disk}", tmp_path)
    told, right, written, failed, texts = run_in(
        start, READ_ONLY, str(disk), "mounted" if start else "refuse"
    )
    assert (told, right, written, failed) == (1, True, 0, 5), texts
    assert "Read-only file system" in texts[0]


async def test_entries_written_with_fsync_are_the_same(tmp_path: Path) -> None:
    """Only later."""
    async with opened(tmp_path, fsync=True) as cache:
        await fill(cache, key())
        found = await cache.read(key())
        assert found is not None
        assert is_right(found, key())
    assert path_of(tmp_path, key()).stat().st_size == len(
        b"".join(bytes(piece) for piece in cache._format.encode(key(), batch(key()), extras(key())))
    )
