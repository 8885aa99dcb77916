"""The loop: a program runs to its end, on the fastest loop, and nothing global is changed."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING

import pytest
import uvloop

from aioloader._engine import loop as module
from aioloader._engine.loop import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def test_it_returns_what_the_program_returns_and_raises_what_it_raises() -> None:
    async def main(fail: bool) -> int:
        await asyncio.sleep(0)
        if fail:
            raise ZeroDivisionError
        return 42

    assert run(main(False)) == 42
    with pytest.raises(ZeroDivisionError):
        run(main(True))


def test_it_runs_on_uvloop() -> None:
    async def main() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    loop = run(main())
    assert isinstance(loop, uvloop.Loop)
    assert loop.is_closed()


def test_it_runs_on_asyncio_where_there_is_no_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    monkeypatch.setattr(module, "_new_event_loop", None)
    assert not isinstance(run(main()), uvloop.Loop)


def test_no_policy_and_no_loop_is_set() -> None:
    policy = asyncio.get_event_loop_policy()
    run(asyncio.sleep(0))
    assert asyncio.get_event_loop_policy() is policy
    assert type(policy) is asyncio.DefaultEventLoopPolicy


def test_debug_is_passed_on() -> None:
    async def main() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert run(main(), debug=True)
    assert not run(main(), debug=False)


def test_what_the_program_leaves_open_is_closed() -> None:
    """Tasks are cancelled, and generators that were not finished are."""
    ended: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            ended.append("generator")

    async def forever() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("task")

    async def main() -> None:
        global kept
        kept = numbers(), asyncio.ensure_future(forever())
        await anext(kept[0])

    run(main())
    assert sorted(ended) == ["generator", "task"]


kept: object = None


def test_it_does_not_run_inside_a_loop() -> None:
    async def main() -> None:
        inner = asyncio.sleep(0)
        try:
            with pytest.raises(RuntimeError):
                run(inner)
        finally:
            inner.close()

    run(main())


def test_context_variables_of_the_caller_are_seen() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(5)

    async def main() -> int:
        return variable.get()

    assert run(main()) == 5
