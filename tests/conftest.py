"""What every test may rely on, wherever the suite was started."""

import gc
import signal

from hypothesis import settings

# A shell starts jobs in the background with SIGINT ignored, and children inherit that: then no
# Ctrl-C would reach the programs under test.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no defect; what a failing example needs to be repeated is printed.
settings.register_profile("tandem", deadline=None, print_blob=True)
settings.load_profile("tandem")


def pytest_collection_finish() -> None:
    """Modules and tests live as long as the process: looks of the collector need not visit them.

    Every simulated run begins with such a look, and the heap of all tests takes longer than a run.
    """
    gc.collect()
    gc.freeze()
