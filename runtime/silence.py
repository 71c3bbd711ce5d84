"""How long a peer has been silent, as told by a listener that may stand still itself."""


class Silence:
    """Grows from look to look, and ends when something is heard. Pure: time is an argument.

    A listener that was stopped, or whose event loop was blocked, cannot tell what its peer said
    meanwhile: of the time between two looks, two intervals count at most.
    """

    def __init__(self, interval_s: float, limit_s: float, now: float) -> None:
        self._most_s = 2 * interval_s
        self.limit_s = limit_s
        self._looked_at_s = now
        self.silent_s = 0.0

    def heard(self) -> None:
        """The peer lives."""
        self.silent_s = 0.0

    def look(self, now: float) -> bool:
        """Whether the silence has lasted longer than the limit; to be asked every interval."""
        self.silent_s += min(max(0.0, now - self._looked_at_s), self._most_s)
        self._looked_at_s = now
        return self.silent_s > self.limit_s
