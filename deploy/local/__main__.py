"""python -m deploy.local up|demo [options]

0: ended in order. 1: failed, with one line on stderr. 2: wrong usage.
130: a second Ctrl-C, or the first one in the demo.
"""

import signal
import sys

if __name__ == "__main__":
    # Until the event loop takes signals over nothing runs that would need a clean end, and dying
    # of the signal prints no traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from deploy.local.launcher import main

    sys.exit(main(sys.argv[1:]))
