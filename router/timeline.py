"""What happened to one answer, change by change: rows of scheduling/lifecycle.py with their time.

Kept for operators; nothing is decided by it.
"""

from dataclasses import dataclass, field, replace

from scheduling.lifecycle import Change, Phase
from scheduling.value import value

# An answer that is moved on and on keeps its beginning and its latest changes.
_KEPT_FIRST, _KEPT_LAST = 16, 48


@value
class Entry:
    """One change of phase."""

    at_s: float
    change: Change
    # The phase from then on.
    phase: Phase
    # Who works on it or parks its KV from then on, on how many blocks; "" and 0: nobody.
    worker_id: str
    num_blocks: int
    num_output_tokens: int
    number_of_try: int
    # Why, where the change does not say it all.
    reason: str = ""
    # When the worker began, where it had a queue of its own.
    started_at_s: float | None = None


@dataclass(slots=True)
class Timeline:
    """The changes of one answer, in order; bounded."""

    entries: list[Entry] = field(default_factory=list)
    # Left out after the first ones.
    num_dropped: int = 0

    def add(self, entry: Entry) -> None:
        """Something happened, later than everything before."""
        self.entries.append(entry)
        if len(self.entries) > _KEPT_FIRST + _KEPT_LAST:
            del self.entries[_KEPT_FIRST]
            self.num_dropped += 1

    def begun(self, now: float) -> None:
        """The worker of the present phase has taken the task out of its own queue."""
        if self.entries:
            self.entries[-1] = replace(self.entries[-1], started_at_s=now)
