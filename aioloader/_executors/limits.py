"""Limits of workers: what they need of descriptors, processes and threads, and who allows it."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from aioloader._memory.limits import cgroup_folders, read_number

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "REFUSALS",
    "explained",
    "refusal",
    "require_descriptors",
    "require_workers",
    "spare_threads",
]

REFUSALS = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""The errors by which the system refuses one more descriptor, process or thread."""

DESCRIPTORS_PER_WORKER = 9  # a pool's three pipes, both ends of its life, its exit, its pidfd
DESCRIPTORS_BESIDE = 16  # the queue, the fork server, what starting takes, large messages
THREADS_PER_WORKER = 2  # a pool's manager, and the feeder of its queue
TASKS_PER_WORKER = 1 + THREADS_PER_WORKER
TASKS_BESIDE = 6  # the fork server; threads that start, look up, pack, read, and end workers

_ROOT = Path("/")
_CAP_SYS_ADMIN, _CAP_SYS_RESOURCE = 21, 24
_FEWER = "use fewer workers"


def require_workers(num_workers: int, root: Path = _ROOT) -> None:
    """Raise :class:`OSError`, with the arithmetic, if some limit forbids so many workers.

    Later it would show wherever the next descriptor or thread is wanted, which may be in
    the middle of a run, and in code that cannot go on without.
    """
    require_descriptors(num_workers)
    needed = num_workers * TASKS_PER_WORKER + TASKS_BESIDE
    for words, remedy, free in _task_limits(needed, root):
        if free < needed:
            raise OSError(
                errno.EAGAIN,
                f"{_workers(num_workers)} {needed} processes and threads, {words}: "
                f"{_FEWER} or {remedy}",
            )


def require_descriptors(num_workers: int = 1, beside: int = DESCRIPTORS_BESIDE) -> None:
    """Raise :class:`OSError`, with the arithmetic, if so many workers need more than are left."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = num_workers * DESCRIPTORS_PER_WORKER + beside
    in_use = _open_count()
    if limit != resource.RLIM_INFINITY and limit - in_use < needed:
        raise OSError(
            errno.EMFILE,
            f"{_workers(num_workers)} {needed} descriptors, the limit is {limit} and {in_use} "
            f"are open: {_FEWER} or raise `ulimit -n`",
        )


def refusal(number: int, wanted: str, root: Path = _ROOT) -> OSError:
    """Return the error that says which limits may have refused ``wanted``."""
    reason = os.strerror(number)
    if number in (errno.EMFILE, errno.ENFILE):
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        message = (
            f"the limit is {limit} and {_open_count()} are open: {_FEWER} or raise `ulimit -n`"
        )
    elif number == errno.ENOMEM:
        message = f"the system is short of memory: {_FEWER}, or a smaller depth or batch_size"
    else:
        found = list(_task_limits(None, root))
        words = [*(words for words, _, _ in found), *_memory_words()]
        remedies = dict.fromkeys(remedy for _, remedy, _ in found)
        message = f"{'; '.join(words) or 'a limit of the system is reached'}: " + " or ".join(
            [_FEWER, *remedies]
        )
    return OSError(number, f"{wanted} cannot be started ({reason}): {message}")


@contextlib.contextmanager
def explained(wanted: str) -> Iterator[None]:
    """Explain a refusal by the system in the block; other errors pass as they are."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise refusal(error.errno, wanted) from error


@contextlib.contextmanager
def spare_threads(count: int = THREADS_PER_WORKER) -> Iterator[None]:
    """Make sure that so many threads can be started, beside what the block starts.

    A pool that cannot start a thread of its own has started its worker already, and what
    was given to it never ends; so somebody has to find out before.
    """
    done = threading.Event()
    threads: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=done.wait, name="aioloader-spare", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise refusal(errno.EAGAIN, "a worker's threads") from error
            threads.append(thread)
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _workers(count: int) -> str:
    return f"{count} workers need" if count > 1 else "a worker needs"


def _open_count() -> int:
    with contextlib.suppress(OSError):
        # Newer kernels count for us.
        return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))
    return 0


def _task_limits(needed: int | None, root: Path) -> Iterator[tuple[str, str, int]]:
    """Yield each limit on processes and threads: in words, its remedy, and what it leaves.

    Where ``needed`` is given, a limit that surely leaves so much may be passed over.
    """
    for folder in cgroup_folders("pids", root):
        limit, used = read_number(folder / "pids.max"), read_number(folder / "pids.current")
        if limit is not None and used is not None:
            words = f"the cgroup {folder} allows {limit} (pids.max) and has {used}"
            yield words, "raise its pids.max", limit - used
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit == resource.RLIM_INFINITY or not _is_bound():
        return
    if needed is None or _system_tasks() + needed > limit:
        used, user = _user_tasks(), os.getuid()
        words = f"the user {user} may have {limit} (RLIMIT_NPROC) and has {used}"
        yield words, "raise `ulimit -u`", limit - used


def _memory_words() -> Iterator[str]:
    # A thread's stack is address space: that, too, is refused as one thread too many.
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        yield f"the address space is limited to {limit >> 20} MiB (`ulimit -v`)"


def _is_bound() -> bool:
    """Tell whether RLIMIT_NPROC concerns this process: root and the like are exempt."""
    if os.getuid() == 0:
        return False
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                capabilities = int(line.split()[1], 16)
                return not capabilities & (1 << _CAP_SYS_ADMIN | 1 << _CAP_SYS_RESOURCE)
    return True


def _system_tasks() -> int:
    """Count all processes and threads, at once; at least as many as this user's."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    return 0


def _user_tasks() -> int:
    """Count this user's processes and threads, as far as they can be seen from here."""
    user, count = str(os.getuid()), 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            lines = dict(
                line.split(":\t", 1)
                for line in (folder / "status").read_text().splitlines()
                if line.startswith(("Uid:", "Threads:"))
            )
            if lines["Uid"].split()[0] == user:
                count += int(lines.get("Threads", 1))
    return count
