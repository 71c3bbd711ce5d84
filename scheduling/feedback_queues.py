"""FastServe's batching, for workers that keep its queues (decode_worker/turn_taking.py). Pure."""

from dataclasses import dataclass

from scheduling.batch_time import BatchShape, chunk_attention
from scheduling.batch_time_online import OnlineBatchTime
from scheduling.batching import IterationChoice, IterationState
from scheduling.batching_rules import FillToTarget
from scheduling.mlfq import MlfqSettings


@dataclass(frozen=True, slots=True)
class FeedbackQueues:
    """How the queues of a worker are shaped, and what a prompt takes, as profiled by its passes.

    A job's place in the queues is no part of an `IterationState`, so who keeps queues does not ask
    `choose`; for others it is prompts in order beside all that run.
    """

    model: OnlineBatchTime
    settings: MlfqSettings

    def prefill_s(self, num_tokens: int) -> float:
        """What the prompt would take by itself: it decides over the first queue."""
        pairs = chunk_attention(0, num_tokens)
        return self.model.seconds(BatchShape(num_prompt_tokens=num_tokens, prompt_attention=pairs))

    def choose(self, state: IterationState) -> IterationChoice:
        """Where no queues are kept."""
        return FillToTarget(self.settings.max_prompt_tokens).choose(state)
