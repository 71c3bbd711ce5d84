"""Python's cyclic collector, for a process that makes very many short-lived objects."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Containers that come to be, and are not freed at once, between two looks at the youngest ones.
# 700 is the default: one frame of a worker makes more, and each look finds next to nothing.
_RARELY = (50_000, 20, 20)


def spare_the_collector() -> None:
    """Call when start-up is over: what lives then lives as long as the process.

    Reference counts free nearly everything that a router makes; cycles come from exceptions and
    cancelled tasks, and may wait. A full look at the heap stops all streams, so it had better find
    a small heap: what start-up left is taken out of it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_RARELY)


@contextmanager
def spared_collector() -> Iterator[None]:
    """The same for as long as one computation takes; what it leaves behind is collected later.

    A heap that was taken out before stays out, so that the look at the rest of it costs little.
    """
    thresholds, is_out_already = gc.get_threshold(), gc.get_freeze_count() > 0
    gc.collect()
    if not is_out_already:
        gc.freeze()
    gc.set_threshold(*_RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        if not is_out_already:
            gc.unfreeze()
