"""Hosts: the loop that a plain `for` lends ends with all that runs on it, whoever ends it."""

from __future__ import annotations

import asyncio
import gc

from support import until

from aioloader._datasets.hosts import Host


async def test_what_runs_on_the_loop_of_a_host_ends_with_it() -> None:
    """Also where it takes its time, and the host is closed and then collected meanwhile."""
    host = Host()
    loop = host.loop()
    assert host._own is not None
    thread, story = host._own.thread, []

    async def work() -> None:
        story.append("begun")
        try:
            await asyncio.sleep(60)
        finally:
            story.append("cancelled")
            await asyncio.sleep(0.2)
            story.append("ended")

    asyncio.run_coroutine_threadsafe(work(), loop)
    await until(lambda: "begun" in story)
    own = host._own
    host.close()
    await until(lambda: "cancelled" in story)
    del own, host
    gc.collect()
    await until(lambda: not thread.is_alive())
    assert story == ["begun", "cancelled", "ended"]
    assert loop.is_closed()
