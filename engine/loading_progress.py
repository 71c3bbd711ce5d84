"""How far the loading of a model has come, for whoever waits for it."""

from typing import Protocol


class LoadingProgress(Protocol):
    """Told by the thread that loads, as often as there is something to tell."""

    def phase(self, name: str) -> None:
        """Another part begins, such as "loading weights"."""
        ...

    def advanced(self, num_done: int, num_total: int) -> None:
        """Of the present part; in whatever it counts."""
        ...


class Unwatched:
    """Nobody wants to know."""

    def phase(self, name: str) -> None:
        """See LoadingProgress."""

    def advanced(self, num_done: int, num_total: int) -> None:
        """See LoadingProgress."""


UNWATCHED = Unwatched()
