"""For tests: somebody who notes how loading goes."""


class NotedProgress:
    """See `LoadingProgress`."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        # Of each phase, how far it came: (done, total).
        self.steps: dict[str, list[tuple[int, int]]] = {}

    def phase(self, name: str) -> None:
        """See LoadingProgress."""
        self.phases.append(name)

    def advanced(self, num_done: int, num_total: int) -> None:
        """See LoadingProgress."""
        self.steps.setdefault(self.phases[-1], []).append((num_done, num_total))
