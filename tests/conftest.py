"""What every test may rely on, wherever the suite was started."""

import signal

# A shell starts jobs in the background with SIGINT ignored, and children inherit that: then no
# Ctrl-C would reach the programs under test.
signal.signal(signal.SIGINT, signal.default_int_handler)
