"""What every test may rely on, wherever the suite was started."""

import signal

from hypothesis import settings

# A shell starts jobs in the background with SIGINT ignored, and children inherit that: then no
# Ctrl-C would reach the programs under test.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no defect; what a failing example needs to be repeated is printed.
settings.register_profile("tandem", deadline=None, print_blob=True)
settings.load_profile("tandem")
