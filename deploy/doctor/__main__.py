"""python -m deploy.doctor [options]

0: KV has a way between all places. 1: between some it has none, or workers do not start with
the transports that were named. 2: wrong usage.
"""

import sys

from deploy.doctor.command import main
from runtime.logging import configure_logging

if __name__ == "__main__":
    configure_logging("doctor", level="error")
    sys.exit(main(sys.argv[1:]))
