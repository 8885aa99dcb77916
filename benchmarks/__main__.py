"""Run measurements: ``python -m benchmarks [NAME ...]``, all of them without a name."""

from __future__ import annotations

import argparse
import importlib
import time

import cloudpickle

NAMES = ("startup", "growth", "lag", "corruption", "endings")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    chosen = parser.parse_args().names or NAMES
    for name in chosen:
        if name not in NAMES:
            parser.error(f"there is no measurement {name!r}; there are {', '.join(NAMES)}")
    for name in chosen:
        started = time.perf_counter()
        print(f"== {name}")
        module = importlib.import_module(f"benchmarks.{name}")
        # As if it were a script: workers then do not import what the module imports.
        cloudpickle.register_pickle_by_value(module)
        module.main()
        print(f"   ({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
