"""The engine thread's side of sharing the machine's cores with other engines."""

from typing import Protocol

import torch

from runtime.clock import Clock
from runtime.core_sharing import CoreSharing


class Cores(Protocol):
    """Asked by the engine thread around each iteration."""

    def begin(self) -> bool:
        """Take the cores for one iteration; False while it is the turn of others: ask again."""
        ...

    def end(self, *, has_computed: bool) -> None:
        """Give them back."""
        ...


class OwnCores:
    """Nothing is shared: the number of threads stays what it was set to."""

    def begin(self) -> bool:
        """Always."""
        return True

    def end(self, *, has_computed: bool) -> None:
        """Nothing to give back."""


class SharedCores:
    """Changes the number of threads between steps; results must not depend on it."""

    def __init__(self, sharing: CoreSharing, clock: Clock) -> None:
        self._sharing = sharing
        self._clock = clock
        # Of the thread that steps; unknown until its first step.
        self._num_threads = 0

    def begin(self) -> bool:
        """As the other engines of the machine leave them."""
        num_threads = self._sharing.begin(self._clock.now())
        if num_threads is None:
            return False
        if num_threads != self._num_threads:
            torch.set_num_threads(num_threads)
            self._num_threads = num_threads
        return True

    def end(self, *, has_computed: bool) -> None:
        """The next engine may go on."""
        self._sharing.end(self._clock.now(), has_computed=has_computed)
