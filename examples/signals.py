"""End on SIGINT or SIGTERM with nothing lost, and go on at the next start.

    python examples/signals.py [STATE]       # Ctrl-C it, or kill it, and start it again

The first signal ends the stream: the batches that are loaded already are still worked on, then
the position is saved as JSON in STATE (signals.json). A second one ends the program as it would
any other. Whatever the interruptions, the lines of all runs together are those of a single one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aioloader import DataGroup, Loader, run

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def load(item: int, arrays: Mapping[str, np.ndarray], seed: int | None) -> None:
    """Take a while for each item, as decoding would."""
    time.sleep(0.002)
    arrays["x"][...] = item


def end_on_signals(loader: Loader[Any]) -> None:
    """Have the first signal end the stream, and give the next its usual meaning again."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        loader.interrupt()
        for number in SIGNALS:
            loop.remove_signal_handler(number)

    for number in SIGNALS:
        loop.add_signal_handler(number, end)


def save(loader: Loader[Any], path: Path) -> None:
    """Replace the file, so that there is never half a position."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(loader.get_state()))
    os.replace(temporary, path)


def make_loader(path: Path) -> Loader[int]:
    """Return a loader of two epochs, or of what a saved position has left of them."""
    arrays = {"x": ((), "int32", "int32")}
    group = DataGroup(16, range(1600), loader_arrays=arrays, shuffle_first=True)
    loader = Loader(load, group, num_workers=2, end_at=("epoch", 2))
    if path.exists():
        loader.set_state(json.loads(path.read_text()))
    return loader


async def main(path: Path) -> None:
    """Work on all that there is, or until a signal."""
    async with make_loader(path) as loader:
        end_on_signals(loader)
        async for batch in loader:
            print(batch.batch_num, batch.arrays["x"].tolist(), flush=True)
        save(loader, path)


if __name__ == "__main__":
    run(main(Path(sys.argv[1] if len(sys.argv) > 1 else "signals.json")))
