"""`python -m holdfast.replay.simulation --seeds 1000 --members 3`: simulate histories, and print what happened."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .checker import Violation
from .run import Report, run
from .world import COMMIT_EVERY_S


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 if a promise was broken; then the history's last steps are printed, and how to run it again."""
    parser = argparse.ArgumentParser(prog="python -m holdfast.replay.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many histories")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--members", type=int, default=3, choices=(3, 5), help="at the beginning")
    parser.add_argument("--seconds", type=float, default=30.0, help="simulated, with faults, in each history")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two faults, on average")
    parser.add_argument("--commit-every", type=float, default=COMMIT_EVERY_S,
                        help="seconds between two rounds of the clients, each of one or two transactions")
    options = parser.parse_args(arguments)
    total = Report()
    try:
        for seed in range(options.first, options.first + options.seeds):
            total.add(run(seed, members=options.members, seconds=options.seconds, every=options.every,
                          commit_every=options.commit_every))
    except Violation as violation:
        sys.stdout.write(f"{violation}\nagain: --from {seed} --seeds 1 --members {options.members} "
                         f"--seconds {options.seconds:g} --every {options.every:g} "
                         f"--commit-every {options.commit_every:g}\n")
        return 1
    sys.stdout.write(f"{total}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
