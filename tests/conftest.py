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

# Whatever is made until all tests are collected lives as long as the process: no look finds any
# garbage among it. (`pytest_collection_finish` ends this.)
gc.disable()


def pytest_collection_finish() -> None:
    """Nor need looks visit it later: a simulated run begins with one, which would take longer than
    most runs do."""
    gc.collect()
    gc.freeze()
    gc.enable()
