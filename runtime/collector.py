"""Python's cyclic collector, for a process that makes very many short-lived objects."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Containers that come to be, and are not freed at once, between two looks at the youngest ones.
# 700 is the default: one frame of a worker makes more, and each look finds next to nothing.
_YOUNG = 50_000


def spare_the_collector() -> None:
    """Call when start-up is over: what lives then lives as long as the process.

    Reference counts free nearly everything that a router makes; cycles come from exceptions and
    cancelled tasks, and may wait. A full look at the heap stops all streams, so it had better find
    a small heap: what start-up left is taken out of it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 20)


@contextmanager
def spared_collector() -> Iterator[None]:
    """The same for as long as one computation takes; what it leaves behind is collected later."""
    thresholds = gc.get_threshold()
    spare_the_collector()
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
