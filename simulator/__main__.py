"""python -m simulator simulate|plan ...: behind `tandem simulate` and `tandem plan`."""

import sys
from collections.abc import Sequence

from simulator import command, plan_command


def main(argv: Sequence[str]) -> int:
    """The exit code; `simulate` may be left out."""
    match argv:
        case ["plan", *rest]:
            return plan_command.main(rest)
        case ["simulate", *rest]:
            return command.main(rest)
        case _:
            return command.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
