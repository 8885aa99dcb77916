"""``python -m aioloader``: what can be done without writing a program."""

from __future__ import annotations

import argparse
import sys

from aioloader._caches import commands


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m aioloader", description=__doc__)
    commands.add_parser(parser.add_subparsers(dest="command", required=True))
    try:
        return commands.run(parser.parse_args(arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads has read enough
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
