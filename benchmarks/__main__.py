"""Run measurements: ``python -m benchmarks [NAME ...]``, all quick ones without a name."""

from __future__ import annotations

import argparse
import importlib
import sys
import time

import cloudpickle

NAMES = (
    "startup",
    "growth",
    "lag",
    "overlap",
    "corruption",
    "endings",
    "ram_cache",
    "cached",
    "datasets",
)
BY_NAME = ("faults",)  # minutes, and options of its own: ``python -m benchmarks faults --write``
_HELP = ("h", "-help")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES + BY_NAME))
    dashes = [i for i, word in enumerate(sys.argv) if word[:1] == "-" and word[1:] not in _HELP]
    cut = dashes[0] if dashes else len(sys.argv)
    chosen, options = parser.parse_args(sys.argv[1:cut]).names or NAMES, sys.argv[cut:]
    for name in chosen:
        if name not in NAMES + BY_NAME:
            known = ", ".join(NAMES + BY_NAME)
            parser.error(f"there is no measurement {name!r}; there are {known}")
    if options and not (len(chosen) == 1 and chosen[0] in BY_NAME):
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    for name in chosen:
        started = time.perf_counter()
        print(f"== {name}")
        module = importlib.import_module(f"benchmarks.{name}")
        # As if it were a script: workers then do not import what the module imports.
        cloudpickle.register_pickle_by_value(module)
        module.main(options) if name in BY_NAME else module.main()
        print(f"   ({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
