"""The long runs, by name."""

from __future__ import annotations

import argparse
import sys

from chaos import cancellation, killing, matrix, random_runs, recovery, remote, sharing, soak


def main() -> int:
    """Run what the command line names; the status is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("matrix", help="every fault at every point, in every executor")
    command.add_argument("--only", default="", help="cells whose description contains this")
    command.set_defaults(run=lambda o: matrix.main(only=o.only))

    command = commands.add_parser("random", help="random faults in random configurations")
    command.add_argument("--seconds", type=float, default=600.0)
    command.add_argument("--seed", type=int, help="the first seed; a failed run's, to repeat it")
    command.add_argument("--runs", type=int, help="how many, at most")
    command.set_defaults(run=lambda o: random_runs.main(o.seconds, o.seed, o.runs))

    command = commands.add_parser("cancellation", help="at every wait of an epoch, in turn")
    command.set_defaults(run=lambda o: cancellation.main())

    command = commands.add_parser("killing", help="of the program, at random moments")
    command.add_argument("--times", type=int, default=200)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=lambda o: killing.main(o.times, o.seed))

    command = commands.add_parser("recovery", help="from workers that are killed all the time")
    command.add_argument("--items", type=int, default=10_000)
    command.set_defaults(run=lambda o: recovery.main(o.items))

    command = commands.add_parser("sharing", help="programs with one cache, killed in turn")
    command.add_argument("--seconds", type=float, default=60.0)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=lambda o: sharing.main(o.seconds, o.seed))

    command = commands.add_parser("remote", help="data from a server that fails and dies")
    command.add_argument("--seconds", type=float, default=300.0)
    command.add_argument("--seed", type=int)
    command.set_defaults(run=lambda o: remote.main(o.seconds, o.seed))

    command = commands.add_parser("soak", help="an hour of loaders, and what grows meanwhile")
    command.add_argument("--seconds", type=float, default=3600.0)
    command.set_defaults(run=lambda o: soak.main(o.seconds))

    options = parser.parse_args()
    return 1 if options.run(options) else 0


sys.exit(main())
