"""What either way back costs a sequence that makes room, by copies and passes as they were timed.

Source: CacheOPT, swap or recompute: the copies both ways against the passes that compute its tokens
again, each with the queue that it stands in. Room for its KV is awaited either way and is left out.
"""

from dataclasses import dataclass, field

from scheduling.batch_time import BatchShape, BatchTimeModel
from scheduling.batch_time_recovery import Recovery, choose_recovery, recompute_seconds
from scheduling.swap_pace import SwapPace


@dataclass(frozen=True, slots=True)
class Victim:
    """A sequence that makes room."""

    # Prompt and output so far.
    num_tokens: int
    # Its KV; what host memory has already is not copied there again.
    num_blocks: int
    num_blocks_out: int


@dataclass(frozen=True, slots=True)
class AheadOfIt:
    """Work of the same engine that is done first on either way."""

    # Parked sequences go on in order: their KV comes back before it.
    num_parked_blocks: int = 0
    # Prompts go in order as well: what has not been computed of those that are here.
    num_prompt_tokens: int = 0
    # Runs beside prompts, where they are computed here: only what they add to it counts.
    beside: BatchShape = field(default_factory=BatchShape)


class RecoveryCosts:
    """Owned by one engine thread; learns from its copies, reads its model of passes."""

    def __init__(
        self, model: BatchTimeModel, block_bytes: int, bytes_per_s: float, max_chunk_tokens: int
    ) -> None:
        """`bytes_per_s` is assumed of copies before the first; prompts are cut into chunks."""
        if max_chunk_tokens < 1:
            raise ValueError(f"max_chunk_tokens must be at least 1, got {max_chunk_tokens}")
        self._model = model
        self._max_chunk_tokens = max_chunk_tokens
        self.pace = SwapPace(block_bytes, bytes_per_s)

    def swap_s(self, victim: Victim, ahead: AheadOfIt) -> float:
        """Its KV to host memory, that of those before it back, and its own."""
        num_back = ahead.num_parked_blocks + victim.num_blocks
        return self.pace.out_s(victim.num_blocks_out) + self.pace.back_s(num_back)

    def recompute_s(self, victim: Victim, ahead: AheadOfIt) -> float:
        """The prompts before it, and its own tokens as a prompt.

        The way of its KV from a prefill worker is not counted: it travels while it is computed.
        """
        return sum(
            recompute_seconds(num_tokens, self._model, self._max_chunk_tokens, ahead.beside)
            for num_tokens in (ahead.num_prompt_tokens, victim.num_tokens)
        )

    def choose(self, victim: Victim, ahead: AheadOfIt) -> Recovery:
        """The cheaper way."""
        chosen = choose_recovery(self.swap_s(victim, ahead), self.recompute_s(victim, ahead))
        if chosen is Recovery.RECOMPUTE:
            self.pace.was_avoided()
        return chosen
