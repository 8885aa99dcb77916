"""The fork server's own program: it forks a child for each request, and says how each ends."""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import os
import selectors
import signal
import socket
import sys
from multiprocessing import forkserver, resource_tracker, spawn
from typing import Any

__all__ = ["PRELOAD", "REQUEST", "serve"]

REQUEST, PRELOAD = b"fork", b"load"

_ALWAYS = ("numpy", "cloudpickle", "concurrent.futures.process", "aioloader._executors.worker")
_MAX_DESCRIPTORS = 32


def serve(descriptor: int) -> None:
    """Run the server: fork a child for each request, report how each ends, until end of file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the program's to handle
    # Both were held back until here.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGPIPE])
    _import(*_ALWAYS)
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
    length = len(REQUEST) + 2
    mark, descriptors, *_ = socket.recv_fds(requests, length, _MAX_DESCRIPTORS)
    if not mark:
        return False
    if mark.startswith(PRELOAD):
        _preload(requests.recv(int.from_bytes(mark[-2:], "big"), socket.MSG_WAITALL).decode())
        return True
    sent, tracked = mark[-2:]
    if len(descriptors) < sent:  # there was no room for all of them here
        _refuse(errno.EMFILE, descriptors)
        return True
    status_w, child_r, *inherited = descriptors
    try:
        pid = os.fork()
    except OSError as error:
        _refuse(error.errno or errno.EAGAIN, descriptors)
        return True
    if pid == 0:
        unused = [requests, status_w, *status.values(), *own]
        _child(child_r, inherited, bool(tracked), unused)
    with contextlib.suppress(BrokenPipeError):
        forkserver.write_signed(status_w, pid)
    status[pid] = status_w
    for fd in (child_r, *inherited):
        os.close(fd)
    return True


def _preload(module: str) -> None:
    """Import what the next children would each import for themselves."""
    if module not in sys.modules:
        with contextlib.suppress(Exception):  # a child that needs it will say why it fails
            _import(module)


def _import(*modules: str) -> None:
    # Collections take a sixth of what importing does, and find next to nothing. What is frozen
    # is never looked at again, so that children keep sharing its memory.
    gc.disable()
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()


def _refuse(number: int, descriptors: list[int]) -> None:
    """Say in the pid's place why there is no child."""
    with contextlib.suppress(BrokenPipeError):
        for status_w in descriptors[:1]:
            forkserver.write_signed(status_w, -number)
    for fd in descriptors:
        os.close(fd)


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
