"""python -m simulator simulate|plan|replay ...: behind the commands of `tandem` of these names."""

import sys
from collections.abc import Sequence

from simulator import command, plan_command, replay_command


def main(argv: Sequence[str]) -> int:
    """The exit code; `simulate` may be left out."""
    match argv:
        case ["plan", *rest]:
            return plan_command.main(rest)
        case ["replay", *rest]:
            return replay_command.main(rest)
        case ["simulate", *rest]:
            return command.main(rest)
        case _:
            return command.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
