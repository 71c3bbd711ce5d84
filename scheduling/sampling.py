"""What a client asks of the next token and of the end of the answer, already resolved."""

import hashlib
from array import array
from dataclasses import dataclass

from scheduling.ids import RequestId


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence draws its tokens. The same seed gives the same tokens in any batch.

    Everything is a function of the tokens so far: whoever goes on with the sequence needs no more.
    In which order the steps apply: docs/sampling.md.
    """

    # 0 is greedy: the most likely token, the lowest id on a tie.
    temperature: float = 1.0
    # Keep the k most likely tokens; 0 keeps all.
    top_k: int = 0
    # Keep the smallest set whose probability reaches this, in (0, 1].
    top_p: float = 1.0
    # 64-bit; `seed_of` the request where the client gave none.
    seed: int = 0
    # Report the logprob of each token and of this many alternatives; None reports nothing.
    num_logprobs: int | None = None
    # Keep tokens at least this times as likely as the likeliest, in [0, 1]; 0 keeps all.
    min_p: float = 0.0
    # Divides the positive logits of tokens in prompt or output, multiplies the negative; above 0.
    repetition_penalty: float = 1.0
    # Taken from the logit of each token in the output: once, and once for each time it is there.
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    # (token id, what is added to its logit); no id twice.
    logit_bias: tuple[tuple[int, float], ...] = ()
    # Before this many output tokens none of end_token_ids is drawn, and no stop string looked for.
    min_tokens: int = 0
    end_token_ids: tuple[int, ...] = ()
    # As num_logprobs, of each prompt token but the first; computed with the prompt.
    num_prompt_logprobs: int | None = None


def seed_of(request_id: RequestId) -> int:
    """The seed of a request that names none, the same at every router and in every version.

    The first 53 bits of the SHA-256 of its id: JSON readers keep no more of a number.
    """
    return int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8]) >> 11


@dataclass(frozen=True, slots=True)
class StopParams:
    """When a sequence ends."""

    # At most this many output tokens, at least 1.
    max_tokens: int
    # A sampled id in here ends the sequence; the id is kept in the tokens, its text is not.
    stop_token_ids: tuple[int, ...] = ()
    # Text that ends the sequence; neither it nor a part of it is ever emitted.
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms, from the model's own distribution before temperature and cuts."""

    logprob: float
    # (token id, logprob), most likely first.
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Logprobs of consecutive prompt tokens, packed: a long prompt has millions of numbers."""

    # Position of the first one in the prompt, at least 1.
    first_token_index: int
    # [tokens], type "f".
    logprobs: "array[float]"
    # [tokens * num_top], one token's alternatives after the other's, likeliest first; "I" and "f".
    top_token_ids: "array[int]"
    top_logprobs: "array[float]"

    @property
    def num_tokens(self) -> int:
        return len(self.logprobs)

    @property
    def end_token_index(self) -> int:
        """Position after the last one."""
        return self.first_token_index + len(self.logprobs)

    @property
    def num_top(self) -> int:
        """Alternatives of each token."""
        return len(self.top_token_ids) // max(1, len(self.logprobs))

    def starting_at(self, token_index: int) -> "PromptLogprobs":
        """Without those before a position; empty where it lies behind the end."""
        num_skipped = min(max(0, token_index - self.first_token_index), self.num_tokens)
        if not num_skipped:
            return self
        num_skipped_top = num_skipped * self.num_top
        return PromptLogprobs(
            self.first_token_index + num_skipped,
            self.logprobs[num_skipped:],
            self.top_token_ids[num_skipped_top:],
            self.top_logprobs[num_skipped_top:],
        )
