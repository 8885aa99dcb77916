"""A fork server of our own: workers start fast, small and without the program's ``__main__``.

The standard library's forkserver is one for the whole program, leaves a directory with a
socket behind when the program is killed, and imports ``__main__`` again in every child. This
one speaks over a socket pair, which nothing can be left of, and carries out the same steps:
the parent sends descriptors, the server forks, the child reads its process object from a
pipe. ``concurrent.futures.ProcessPoolExecutor`` uses it through `ForkContext`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing import (
    connection,
    context,
    forkserver,
    popen_forkserver,
    process,
    reduction,
    resource_tracker,
    spawn,
    util,
)
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ForkContext", "ForkServer", "server"]

_PRELOAD = ("numpy", "cloudpickle", "concurrent.futures.process", "aioloader._executors.worker")
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_MAX_DESCRIPTORS = 32
_UNKNOWN_EXIT_CODE = 255
_REQUEST, _READY = b"fork", b"ready"


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
            self._users += 1
            self._ensure_running()

    def release(self) -> None:
        """Drop a user; blocks for the few milliseconds that the server needs to end."""
        with self._lock:
            self._users -= 1
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
            except OSError:  # the server was killed; the next one takes over
                self._stop()
                return self._request(descriptors)

    def _request(self, descriptors: list[int]) -> tuple[int, int]:
        self._ensure_running()
        assert self._socket is not None
        status_r, status_w = os.pipe()
        child_r, child_w = os.pipe()
        # If the program already runs the standard library's resource tracker, children must
        # share it, or shared memory that they attach to would end with them.
        tracker = resource_tracker._resource_tracker._fd  # type: ignore[attr-defined]
        shared = [child_r, status_w, *([] if tracker is None else [tracker]), *descriptors]
        mark = _REQUEST + (b"" if tracker is None else b"+")
        try:
            socket.send_fds(self._socket, [mark], shared)
        except BaseException:
            os.close(status_r)
            os.close(child_w)
            raise
        finally:
            os.close(status_w)
            os.close(child_r)
        return status_r, child_w

    def _ensure_running(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._stop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
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


server = ForkServer()


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
        except (OSError, EOFError):  # the server was killed, and nobody knows
            return _UNKNOWN_EXIT_CODE

    def _launch(self, process_obj: Any) -> None:
        buffer = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(_preparation(process_obj.name), buffer)
            reduction.dump(process_obj, buffer)
        finally:
            context.set_spawning_popen(None)
        self.sentinel, child_w = server.fork(self._fds)  # type: ignore[attr-defined]
        # The write end stays open for as long as this process lives: its end of file is
        # how the child learns of this process's death.
        sentinel_w = os.dup(child_w)
        self.finalizer = util.Finalize(self, _close_all, (sentinel_w, self.sentinel))
        with open(child_w, "wb") as pipe:
            pipe.write(buffer.getbuffer())
        self.pid = forkserver.read_signed(self.sentinel)


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
        super().__init__()
        self.process: process.BaseProcess | None = None

    def Process(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        self.process = _Process(*args, **kwargs)
        return self.process

    def Lock(self) -> Any:
        return _Lock()

    def BoundedSemaphore(self, value: int = 1) -> Any:
        return _Lock()


def serve(descriptor: int) -> None:
    """Run the server: fork a child for each request, report how each ends, until end of file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the program's to handle
    for module in _PRELOAD:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_w)
    status: dict[int, int] = {}
    with socket.socket(fileno=descriptor) as requests, selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(wake_r, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if wake_r in ready:
                os.read(wake_r, 4096)
                _reap(status)
            if requests in ready and not _serve_request(
                requests, status, [wake_r, wake_w, selector]
            ):
                return


def _serve_request(requests: socket.socket, status: dict[int, int], own: list[Any]) -> bool:
    length = len(_REQUEST) + 1
    mark, descriptors, *_ = socket.recv_fds(requests, length, _MAX_DESCRIPTORS)
    if not mark:
        return False
    child_r, status_w, *inherited = descriptors
    pid = os.fork()
    if pid == 0:
        unused = [requests, status_w, *status.values(), *own]
        _child(child_r, inherited, mark.endswith(b"+"), unused)
    with contextlib.suppress(BrokenPipeError):
        forkserver.write_signed(status_w, pid)
    status[pid] = status_w
    for fd in (child_r, *inherited):
        os.close(fd)
    return True


def _child(child_r: int, inherited: list[int], tracked: bool, unused: list[Any]) -> None:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for thing in unused:
            os.close(thing) if isinstance(thing, int) else thing.close()
        if tracked:
            tracker: Any = resource_tracker._resource_tracker
            tracker._fd = inherited.pop(0)
        stdlib: Any = forkserver._forkserver
        stdlib._inherited_fds = inherited
        code = spawn._main(child_r, os.dup(child_r))
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    finally:
        os._exit(code)


def _reap(status: dict[int, int]) -> None:
    for pid in list(status):
        done, raw = os.waitpid(pid, os.WNOHANG)
        if done == 0:
            continue
        with contextlib.suppress(BrokenPipeError):
            forkserver.write_signed(status[pid], os.waitstatus_to_exitcode(raw))
        os.close(status.pop(pid))


def _preparation(name: str) -> dict[str, Any]:
    # The standard library's version of this fixes the program's start method as a side
    # effect, and asks for `__main__` to be imported in the child.
    data: dict[str, Any] = {
        "name": name,
        "authkey": process.current_process().authkey,
        "sys_path": [path or os.getcwd() for path in sys.path],
        "sys_argv": sys.argv,
        "log_to_stderr": False,
    }
    with contextlib.suppress(FileNotFoundError):
        data["dir"] = os.getcwd()
    return data


def _command(descriptor: int) -> list[str]:
    flags: Callable[[], list[str]] = subprocess._args_from_interpreter_flags  # type: ignore[attr-defined]
    # The program's own directory last: a file of the user's that is named like a module of
    # the standard library must not be imported here. Children get the program's order.
    path = json.dumps([path or os.getcwd() for path in (*sys.path[1:], *sys.path[:1])])
    program = (
        f"import sys; sys.path[:] = {path}; "
        f"from aioloader._executors.forkserver import serve; serve({descriptor})"
    )
    return [sys.executable, *flags(), "-c", program]
