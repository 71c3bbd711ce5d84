"""Which of several routers a client speaks to. Pure: no I/O, no clock."""

import random
from collections.abc import Sequence


class Route:
    """Router replicas are equal: one is as good as any other, until it fails.

    Shared by all calls of a client: where one call failed, the next does not begin.
    """

    def __init__(self, targets: Sequence[str], rng: random.Random) -> None:
        self._targets = tuple(targets)
        # Clients that were given the same list spread over it.
        self._index = rng.randrange(len(self._targets)) if len(self._targets) > 1 else 0

    @property
    def target(self) -> str:
        """Where the next call goes."""
        return self._targets[self._index]

    def leave(self, target: str) -> None:
        """A call to this one failed; nothing happens where another call has noticed already."""
        if self.target == target:
            self._index = (self._index + 1) % len(self._targets)
