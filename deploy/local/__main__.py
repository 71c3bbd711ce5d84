"""python -m deploy.local up|demo [options]

0: ended in order. 1: failed, with one line on stderr. 2: wrong usage, or a model that cannot be
served so. 130: a second Ctrl-C, or the first one during the start or the demo.
"""

import contextlib
import os
import signal
import sys
from typing import NoReturn


def _leave(number: int, frame: object) -> NoReturn:
    """Until the event loop takes signals over nothing runs that would need a clean end."""
    with contextlib.suppress(OSError):
        os.write(2, b"tandem: interrupted before anything was started\n")
    os._exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _leave)
    from deploy.local.launcher import main

    sys.exit(main(sys.argv[1:]))
