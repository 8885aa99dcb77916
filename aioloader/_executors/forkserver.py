"""A fork server of our own: workers start fast, small and without the program's ``__main__``.

The standard library's forkserver is one for the whole program, leaves a directory with a
socket behind when the program is killed, and imports ``__main__`` again in every child. This
one speaks over a socket pair, which nothing can be left of, and carries out the same steps:
the parent sends descriptors, the server forks, the child reads its process object from a
pipe. ``concurrent.futures.ProcessPoolExecutor`` uses it through `ForkContext`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from multiprocessing import (
    connection,
    context,
    forkserver,
    popen_forkserver,
    process,
    reduction,
    resource_tracker,
    util,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

from aioloader._executors.forkserver_main import PRELOAD, REQUEST
from aioloader._executors.limits import (
    REFUSALS,
    explained,
    refusal,
    require_descriptors,
    spare_threads,
)

__all__ = ["ForkContext", "ForkServer", "server"]

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_UNKNOWN_EXIT_CODE = 255
_WORKER = "a worker process"
_SERVER_FAILS = (
    "the process that workers are forked from ends as soon as it is started: it may have "
    "printed why, or been killed for want of memory"
)


@final
class ForkServer:
    """The parent's side: starts the server when the first user comes, ends it with the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Keep the server running for the length of the block (see `retain`)."""
        self.retain()
        try:
            yield
        finally:
            self.release()

    def retain(self) -> None:
        """Add a user; the server starts, without waiting for it, if it was the first."""
        with self._lock:
            self._ensure_running()
            self._users += 1

    def release(self) -> None:
        """Drop a user; blocks for the few milliseconds that the server needs to end."""
        with self._lock:
            # Also somebody comes here for whom the server could not be started.
            self._users = max(self._users - 1, 0)
            if self._users == 0:
                self._stop()

    def fork(self, descriptors: list[int]) -> tuple[int, int]:
        """Fork a child that inherits ``descriptors``.

        Returns the child's status pipe (its pid, its exit code, end of file) and the write
        end of the pipe on which it waits for its process object.
        """
        with self._lock:
            try:
                return self._request(descriptors)
            except ConnectionError:  # the server was killed; the next one takes over
                self._stop()
                return self._request(descriptors)

    def preload(self, module: str) -> None:
        """Have a module imported once, for all children to come; does not wait for it."""
        with self._lock, contextlib.suppress(OSError):  # then children import it
            self._ensure_running()
            assert self._socket is not None
            name = module.encode()
            self._socket.sendall(PRELOAD + len(name).to_bytes(2, "big") + name)

    def _request(self, descriptors: list[int]) -> tuple[int, int]:
        self._ensure_running()
        assert self._socket is not None
        with explained(_WORKER):
            status_r, status_w, child_r, child_w = _pipes()
        # If the program already runs the standard library's resource tracker, children must
        # share it, or shared memory that they attach to would end with them.
        tracker = resource_tracker._resource_tracker._fd  # type: ignore[attr-defined]
        shared = [status_w, child_r, *([] if tracker is None else [tracker]), *descriptors]
        mark = REQUEST + bytes([len(shared), tracker is not None])
        try:
            socket.send_fds(self._socket, [mark], shared)
        except BaseException:
            _close_all(status_r, child_w)
            raise
        finally:
            _close_all(status_w, child_r)
        return status_r, child_w

    def _ensure_running(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._stop()
        with explained("the process that workers are forked from"):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            for end in (ours, theirs):
                end.setblocking(True)  # they may begin with a time-out that the program has set
            with theirs, _without_ctrl_c():
                try:
                    self._process = subprocess.Popen(
                        _command(theirs.fileno()),
                        stdin=subprocess.DEVNULL,
                        pass_fds=(theirs.fileno(),),
                        env={**dict.fromkeys(_ONE_THREAD, "1"), **os.environ},
                    )
                except BaseException:
                    ours.close()
                    raise
        self._socket = ours

    def _stop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()  # it owns nothing: its children are their parents' affair
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """Let go of the server, in a process that the program has forked."""
        self._lock = threading.Lock()
        self._users, self._process = 0, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None


server = ForkServer()
_children: weakref.WeakSet[_Popen] = weakref.WeakSet()


def _after_fork() -> None:
    # A process that the program forks inherits the pipe whose end tells workers that the
    # program is dead. If it kept it, they would live as long as it does.
    server.forget()
    for child in list(_children):
        child.forget()
    _children.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Lock:
    """Stands in for the locks of a pool's queues.

    They exist so that several processes can share a queue. A pool of one worker has one
    process at each end, and the semaphores that it would make have names, which a killed
    program leaves behind.
    """

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        return True

    def release(self) -> None:
        return None

    @property
    def _semlock(self) -> _Lock:
        return self  # a queue asks its bounding semaphore whether it is full

    def _is_zero(self) -> bool:
        return False

    __enter__ = acquire

    def __exit__(self, *exc: object) -> None:
        return None


class _Popen(popen_forkserver.Popen):
    def __init__(self, process_obj: Any) -> None:
        self._poll_lock = threading.Lock()
        self._pidfd: int | None = None
        super().__init__(process_obj)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        # The pool's thread and the supervisor's both ask, and only one can read the answer.
        while self.returncode is None:
            if not connection.wait([self.sentinel], 0 if flag == os.WNOHANG else None):
                return None
            with self._poll_lock:
                if self.returncode is None:
                    self.returncode = self._read_exit_code()
        return self.returncode

    def _read_exit_code(self) -> int:
        try:
            return int(forkserver.read_signed(self.sentinel))
        except (OSError, EOFError):
            # The server is gone, and with it the news of this process, which may well live.
            self._make_sure_it_is_dead()
            return _UNKNOWN_EXIT_CODE

    def _launch(self, process_obj: Any) -> None:
        buffer = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(_preparation(process_obj.name), buffer)
            reduction.dump(process_obj, buffer)
        finally:
            context.set_spawning_popen(None)
        with spare_threads():
            try:
                self._start(buffer)
            except (EOFError, ConnectionError):  # the server was killed on the way; once more
                try:
                    self._start(buffer)
                except (EOFError, ConnectionError):
                    raise ChildProcessError(_SERVER_FAILS) from None

    def _start(self, buffer: io.BytesIO) -> None:
        self.sentinel, child_w = server.fork(self._fds)  # type: ignore[attr-defined]
        # The write end stays open for as long as this process lives: its end of file is
        # how the child learns of this process's death.
        kept = [self.sentinel, child_w]
        try:
            written = _write(child_w, buffer.getbuffer())
            self.pid = forkserver.read_signed(self.sentinel)
            if self.pid < 0:  # there is no child, and this is why
                raise refusal(-self.pid, _WORKER)
            if not written:
                raise BrokenPipeError
            if hasattr(os, "pidfd_open"):
                self._pidfd = _pidfd_of(self.pid)
                kept += [] if self._pidfd is None else [self._pidfd]
        except BaseException:
            _close_all(*kept)
            raise
        self.finalizer = util.Finalize(self, _close_all, kept)
        self._kept = kept
        _children.add(self)

    def close(self) -> None:
        """Close what is left of a child that has ended."""
        _children.discard(self)
        super().close()

    def forget(self) -> None:
        """Let go of the child, in a process that the program has forked: it is not its child."""
        _close_all(*self._kept)  # a finalizer does nothing in another process

    def _make_sure_it_is_dead(self) -> None:
        if self._pidfd is None:
            return
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        connection.wait([self._pidfd])


def _write(descriptor: int, data: memoryview) -> bool:
    """Write all of ``data``; returns False if there is nobody to read it."""
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except BrokenPipeError:
        return False
    return True


def _pidfd_of(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in REFUSALS:
            raise refusal(error.errno, _WORKER) from error
        return None  # it has ended already


def _pipes() -> tuple[int, int, int, int]:
    first = os.pipe()
    try:
        return (*first, *os.pipe())
    except BaseException:
        _close_all(*first)
        raise


def _close_all(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class _Process(process.BaseProcess):
    _start_method = "forkserver"

    @staticmethod
    def _Popen(process_obj: Any) -> _Popen:
        return _Popen(process_obj)


@final
class ForkContext(context.ForkServerContext):
    """A multiprocessing context for pools of one worker each; remembers the worker."""

    def __init__(self) -> None:
        require_descriptors(beside=6)  # a worker that replaces another may come upon a limit
        super().__init__()
        self.process: process.BaseProcess | None = None

    def Process(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        self.process = _Process(*args, **kwargs)
        return self.process

    def Lock(self) -> Any:
        return _Lock()

    def BoundedSemaphore(self, value: int = 1) -> Any:
        return _Lock()


def _preparation(name: str) -> dict[str, Any]:
    # The standard library's version of this fixes the program's start method as a side
    # effect, and asks for `__main__` to be imported in the child.
    data: dict[str, Any] = {
        "name": name,
        "authkey": process.current_process().authkey,
        "sys_path": _module_paths(),
        "sys_argv": sys.argv,
        "log_to_stderr": False,
    }
    with contextlib.suppress(FileNotFoundError):
        data["dir"] = os.getcwd()
    return data


def _module_paths() -> list[str]:
    # The import system passes over what is no string; a child's must not stumble over it.
    entries: list[Any] = sys.path
    return [path or os.getcwd() for path in entries if isinstance(path, str)]


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    # A process that is started meanwhile begins with Ctrl-C held back: it has no part in it, and
    # would say so on stderr before it is far enough to ignore it.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _command(descriptor: int) -> list[str]:
    flags: Callable[[], list[str]] = subprocess._args_from_interpreter_flags  # type: ignore[attr-defined]
    # The program's own directory last: a file of the user's that is named like a module of
    # the standard library must not be imported here. Children get the program's order.
    paths = _module_paths()
    path = [*paths[1:], *paths[:1]]
    # But the package is this one, also where another copy of it is installed.
    folder = str(Path(__file__).parents[2])
    program = (
        f"import gc, sys; gc.disable(); sys.path[:] = {json.dumps(path)}; import importlib, typing"
        f"; sys.path.insert(0, {json.dumps(folder)}); import aioloader; del sys.path[0]; "
        f"from aioloader._executors.forkserver_main import serve; serve({descriptor})"
    )
    return [sys.executable, *flags(), "-c", program]
