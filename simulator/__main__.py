"""python -m simulator --trace FILE ...: the command behind `tandem simulate`."""

import sys

from simulator.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
