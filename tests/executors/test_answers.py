"""Answers: what a worker has said counts, whatever becomes of it next."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from aioloader._executors import wire
from aioloader._executors.failures import Failure
from aioloader._executors.jobs import Ledger
from aioloader._executors.supervisor import Supervisor
from aioloader._executors.worker import ACK_UNSTARTED


@pytest.mark.parametrize("limit", [1, 64])
async def test_an_answer_is_heard_although_its_worker_ended_with_work_unread(limit: int) -> None:
    """The kernel then says "connection reset" first, and only then what was sent before."""
    ledger, spec = Ledger(), SimpleNamespace(num_workers=1)
    supervisor = Supervisor(spec, ledger, whole=False, limit=None)  # type: ignore[arg-type]
    supervisor._loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair(socket.AF_UNIX, wire.SOCKET_KIND)
    with ours:
        ours.setblocking(False)
        ours.send(b"work that nobody reads")
        failure = Failure.capture(ValueError("no such device"))
        wire.send(theirs, wire.encode((ACK_UNSTARTED, failure)))
        theirs.close()
        crew: Any = SimpleNamespace(socket=ours)
        while supervisor._receive(crew, limit):
            pass
    assert ledger.broken is not None
    assert "no such device" in str(ledger.broken)
