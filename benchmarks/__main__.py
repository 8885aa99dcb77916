"""Run measurements: ``python -m benchmarks [NAME ...] [OPTION ...]``.

Workloads of the comparison with other loaders come with its options, and without a name all of
them run; other measurements are of this loader alone.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time

import cloudpickle

from benchmarks import comparison
from benchmarks.workloads import NAMES as WORKLOADS

NAMES = (
    "startup",
    "growth",
    "lag",
    "overlap",
    "corruption",
    "endings",
    "ram_cache",
    "datasets",
    "remote",
)
BY_NAME = ("faults",)  # minutes, and options of its own: ``python -m benchmarks faults --write``
_HELP = ("h", "-help")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = tuple(name for name in (*WORKLOADS, *NAMES, *BY_NAME) if there_is(name))
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    dashes = [i for i, word in enumerate(sys.argv) if word[:1] == "-" and word[1:] not in _HELP]
    cut = dashes[0] if dashes else len(sys.argv)
    chosen, options = parser.parse_args(sys.argv[1:cut]).names, sys.argv[cut:]
    for name in chosen:
        if name not in known:
            parser.error(f"there is no measurement {name!r}; there are {', '.join(known)}")
    compared = [name for name in chosen if name in WORKLOADS]
    others = [name for name in chosen if name not in WORKLOADS]
    if options and others and (len(chosen) > 1 or others[0] not in BY_NAME):
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    if compared or not chosen:
        comparison.main(compared, options)
    for name in others:
        measure(name, options)


def there_is(name: str) -> bool:
    """Tell whether a measurement has its module."""
    return name in WORKLOADS or importlib.util.find_spec(f"benchmarks.{name}") is not None


def measure(name: str, options: list[str]) -> None:
    """Run a measurement of this loader alone."""
    started = time.perf_counter()
    print(f"== {name}")
    module = importlib.import_module(f"benchmarks.{name}")
    # As if it were a script: workers then do not import what the module imports.
    cloudpickle.register_pickle_by_value(module)
    module.main(options) if name in BY_NAME else module.main()
    print(f"   ({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
