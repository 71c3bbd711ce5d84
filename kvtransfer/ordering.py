"""The one memory barrier that two processes sharing a pool need from each other."""

import threading


def full_fence() -> None:
    """Order every load and store before this call ahead of every one after it.

    Python has no fence, but an uncontended lock is an atomic operation. On x86 one is a full
    barrier. ARM orders a lock's acquire and release in one direction each, so a single pair lets
    accesses slip into it from both sides; with two pairs the release of the first and the acquire
    of the second cannot pass each other, and nothing passes both. Aligned 8-byte numpy items are
    read and written in one piece on both.
    """
    lock = threading.Lock()
    with lock:
        pass
    with lock:
        pass
