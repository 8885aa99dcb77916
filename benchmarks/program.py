"""The program of one run: ``python -m benchmarks.program WORKLOAD SETTING``, the latter JSON.

It prints its figures as a line of JSON.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Setting:
    """What a run is told: which loader, in which case, and how long."""

    loader: str
    case: str = ""
    scale: float = 1.0
    scratch: str = ""

    @property
    def adapter(self) -> Any:
        """The loader's adapter."""
        return importlib.import_module(f"benchmarks.loaders.{self.loader}")

    def times(self, number: int, least: int = 1) -> int:
        """Return a number as it is at this scale."""
        return max(least, round(number * self.scale))


def main(workload: str, text: str) -> None:
    setting = Setting(**json.loads(text))
    module = importlib.import_module(f"benchmarks.workloads.{workload}")
    if setting.loader == "prepare":
        module.prepare(setting)
        return
    if hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    figures = module.run(setting)
    packages = getattr(module, "PACKAGES", {}).get(setting.loader)
    packages = setting.adapter.PACKAGES if packages is None else packages
    figures["versions"] = {name: metadata.version(name) for name in packages}
    print(json.dumps(figures), flush=True)
    sys.stderr.flush()
    os._exit(0)  # what a loader does at the interpreter's end is no part of any figure


if __name__ == "__main__":
    main(*sys.argv[1:])
