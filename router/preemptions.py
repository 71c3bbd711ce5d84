"""How often an answer made room for others: each time counts once, whatever becomes of its KV."""

from dataclasses import dataclass


@dataclass(slots=True)
class Preemptions:
    """Of one answer. At one time its KV may move to host memory and be given up after all."""

    num_times: int = 0
    # How often the KV moved to host memory.
    num_swaps: int = 0
    # How often it was given up, to be computed again.
    num_recomputations: int = 0
    # Output at the latest time; None once its KV was back.
    _num_output_tokens: int | None = None

    @property
    def num_ways_back(self) -> int:
        """How often it came back, or will have, after it had lost its blocks."""
        return self.num_swaps + self.num_recomputations

    def note(self, num_output_tokens: int) -> bool:
        """It makes room; False where it did so before and has got no token since."""
        is_new = self._num_output_tokens != num_output_tokens
        self._num_output_tokens = num_output_tokens
        self.num_times += is_new
        return is_new

    def note_return(self) -> None:
        """Its KV is where it can go on, with or without a token."""
        self._num_output_tokens = None
