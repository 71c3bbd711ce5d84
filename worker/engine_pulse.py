"""The engine thread's sign of life: written by that thread, read by any other.

A turn that does not end is a stuck engine. How long one may take depends on what it computes: a
long prompt on a slow machine is no defect.
"""

from dataclasses import dataclass

from runtime.clock import Clock, MonotonicClock


@dataclass(frozen=True, slots=True)
class Pulse:
    """What was seen of the engine at one instant."""

    # Turns of the engine's loop that have ended.
    num_turns: int
    # How long the present turn has taken; 0 while the engine waits for work.
    turn_s: float
    # Tokens that it computes in this turn.
    num_tokens: int

    @property
    def is_waiting(self) -> bool:
        """There is nothing to do, so nothing can be stuck."""
        return self.turn_s == 0.0


class EnginePulse:
    """One for each engine; a beat is one assignment, so no lock is needed."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or MonotonicClock()
        self._num_turns = 0
        # When the present turn began and how many tokens it computes; None between turns.
        self._turn: tuple[float, int] | None = None

    def begin(self, num_tokens: int = 0) -> None:
        """A turn, or the computation within it, begins."""
        self._turn = (self._clock.now(), num_tokens)

    def end(self) -> None:
        """The turn is over."""
        self._num_turns += 1
        self._turn = None

    def now(self) -> Pulse:
        """What can be told from outside."""
        turn, num_turns = self._turn, self._num_turns
        if turn is None:
            return Pulse(num_turns, 0.0, 0)
        began_at_s, num_tokens = turn
        # Never 0: that means that the engine waits.
        return Pulse(num_turns, max(1e-9, self._clock.now() - began_at_s), num_tokens)
