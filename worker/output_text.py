"""From sampled tokens to text and stop decisions, for every sequence in the engine.

The state of a sequence is a function of its tokens alone, so another worker that is given the same
tokens goes on with the very next character.
"""

from engine.detokenizer import IncrementalDetokenizer
from engine.tokenizer import Tokenizer
from scheduling.sampling import StopParams, TokenLogprobs
from scheduling.step import SequenceStart, StepResult
from scheduling.stop_strings import StopMatcher
from scheduling.worker_events import SampledOutput


class _SequenceText:
    """Detokenisation and stop conditions of one sequence."""

    __slots__ = (
        "_detokenizer",
        "_matcher",
        "_num_early",
        "_num_left",
        "_stop_token_ids",
        "is_over",
    )

    def __init__(self, tokenizer: Tokenizer, start: SequenceStart, stop: StopParams) -> None:
        prompt = start.token_ids[: start.num_prompt_tokens]
        output = start.token_ids[start.num_prompt_tokens :]
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt)
        self._matcher = StopMatcher(stop.stop_strings) if stop.stop_strings else None
        self._stop_token_ids = frozenset(stop.stop_token_ids)
        self._num_left = stop.max_tokens
        # Tokens still to come that end nothing; what they say is no part of a stop string.
        self._num_early = start.sampling.min_tokens
        # Its last token was taken in: what the engine computed beyond it counts for nothing.
        self.is_over = False
        for token_id in output:
            self.advance(-1, token_id, None)

    def advance(self, slot: int, token_id: int, logprobs: TokenLogprobs | None) -> SampledOutput:
        """Take in the next token."""
        self._num_left -= 1
        if self._num_early > 0:
            self._num_early -= 1
            return self._advance_early(slot, token_id, logprobs)
        if token_id in self._stop_token_ids:
            # The end token has no text of its own, but text may have been held back before it.
            text, held_back = self._rest(self._detokenizer.finish())
            matched_stop = token_id if held_back is None else held_back
            return SampledOutput(slot, token_id, text, logprobs, "stop", matched_stop)
        text = self._detokenizer.step(token_id)
        matched: str | None = None
        reason: str | None
        if self._matcher is not None:
            outcome = self._matcher.feed(text)
            text, matched = outcome.emit, outcome.matched
        if matched is None and self._num_left <= 0:
            rest, matched = self._rest(self._detokenizer.finish())
            reason = "length" if matched is None else "stop"
            return SampledOutput(slot, token_id, text + rest, logprobs, reason, matched)
        reason = None if matched is None else "stop"
        return SampledOutput(slot, token_id, text, logprobs, reason, matched)

    def _advance_early(
        self, slot: int, token_id: int, logprobs: TokenLogprobs | None
    ) -> SampledOutput:
        text = self._detokenizer.step(token_id)
        if self._num_left > 0:
            return SampledOutput(slot, token_id, text, logprobs)
        return SampledOutput(slot, token_id, text + self._detokenizer.finish(), logprobs, "length")

    def _rest(self, text: str) -> tuple[str, str | None]:
        """What is still held back at the end of the sequence."""
        if self._matcher is None:
            return text, None
        outcome = self._matcher.feed(text)
        if outcome.matched is not None:
            return outcome.emit, outcome.matched
        return outcome.emit + self._matcher.finish(), None


class OutputText:
    """All sequences of the engine by slot. Used by the engine thread only."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._text_by_slot: dict[int, _SequenceText] = {}

    def load(self, start: SequenceStart, stop: StopParams) -> None:
        """A sequence enters; output that exists already is replayed, not emitted."""
        self._text_by_slot[start.slot] = _SequenceText(self._tokenizer, start, stop)

    def drop(self, slot: int) -> None:
        """A sequence left."""
        del self._text_by_slot[slot]

    def process(self, result: StepResult) -> tuple[SampledOutput, ...]:
        """Text and stop decision of every sampled token, in the order of the result.

        Not of tokens behind the end of a sequence, which a pass planned ahead may bring.
        """
        logprobs = result.logprobs or (None,) * len(result.slots)
        outputs: list[SampledOutput] = []
        for slot, token_id, logprob in zip(result.slots, result.token_ids, logprobs, strict=True):
            text = self._text_by_slot[slot]
            if not text.is_over:
                output = text.advance(slot, token_id, logprob)
                text.is_over = output.finish_reason is not None
                outputs.append(output)
        return tuple(outputs)
