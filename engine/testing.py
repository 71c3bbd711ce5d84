"""Small random models, and a loop that runs sequences together: for the tests of every package."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.families_testing import FAMILIES as FAMILIES
from engine.families_testing import family_config as family_config
from engine.families_testing import family_fields as family_fields
from engine.model_folder_testing import make_random_model_folder as make_random_model_folder
from engine.runner import Runner
from scheduling.sampling import PromptLogprobs, SamplingParams, TokenLogprobs
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan

GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class TrialRequest:
    """A sequence for `run_together`."""

    prompt: tuple[int, ...]
    num_output: int
    sampling: SamplingParams = GREEDY
    # The prompt is computed in chunks of at most this many tokens.
    chunk_tokens: int = 1 << 30
    # Output tokens that are already known and are computed again, as after a preemption.
    known_output: tuple[int, ...] = ()


@dataclass(slots=True)
class TrialResult:
    """What a sequence of `run_together` produced, without its known output."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)


def run_together(
    runner: Runner, requests: Sequence[TrialRequest], block_size: int, num_blocks: int
) -> list[TrialResult]:
    """Run all requests at once, each as fast as its chunks allow; slots are 0, 1, 2 and so on.

    Blocks are handed out as they are needed, in a scattered order, from `num_blocks`.
    """
    free = [i for rest in range(3) for i in range(num_blocks) if i % 3 == rest]
    results = [TrialResult() for _ in requests]
    lengths, computed, held = [], [0] * len(requests), [0] * len(requests)
    for slot, request in enumerate(requests):
        history = request.prompt + request.known_output
        runner.add(SequenceStart(slot, history, len(request.prompt), request.sampling, ()))
        lengths.append(len(history))
    running = [slot for slot, request in enumerate(requests) if request.num_output]
    while running:
        chunks = []
        for slot in running:
            size = min(requests[slot].chunk_tokens, lengths[slot] - computed[slot])
            end = computed[slot] + size
            more = -(-end // block_size) - held[slot]
            runner.extend_blocks(slot, [free.pop() for _ in range(more)])
            held[slot] += more
            chunks.append(ScheduledChunk(slot, computed[slot], size, end == lengths[slot]))
            computed[slot] = end
        step = runner.step(StepPlan(tuple(chunks)))
        for slot, piece in step.prompt_logprobs:
            results[slot].prompt_logprobs.append(piece)
        logprobs = step.logprobs or (None,) * len(step.slots)
        for slot, token, logprob in zip(step.slots, step.token_ids, logprobs, strict=True):
            results[slot].token_ids.append(token)
            results[slot].logprobs.append(logprob)
            lengths[slot] += 1
            if len(results[slot].token_ids) == requests[slot].num_output:
                runner.remove(slot)
                running.remove(slot)
    return results
