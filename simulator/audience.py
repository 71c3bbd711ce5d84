"""Who is told what happens in a simulated cluster."""

from array import array
from typing import Protocol

from router.events import EmitFailed, EmitFinished, EmitTokens
from simulator.simulated_worker import SimulatedWorker
from simulator.step_log import StepRun


class Audience(Protocol):
    """Hears what callers would, and what workers do."""

    def tokens(self, emitted: EmitTokens, now: float, gaps_s: "array[float]") -> None:
        """The last of the tokens came now; before it were `gaps_s`, where there are any, else 0."""
        ...

    def finished(self, emitted: EmitFinished, now: float) -> None: ...

    def failed(self, emitted: EmitFailed, now: float) -> None: ...

    def planned(self, worker: SimulatedWorker, now: float) -> None:
        """A worker has looked at what is to be done; until it looks again, it holds this."""
        ...

    def stepped(self, worker: SimulatedWorker, run: StepRun) -> None:
        """A worker has computed this; it ended now."""
        ...
