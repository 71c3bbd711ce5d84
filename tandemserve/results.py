"""What calls return: frozen values, free of protobuf. `wire.py` makes them."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "Accepted",
    "Choice",
    "Completion",
    "Delta",
    "Event",
    "FinishReason",
    "Finished",
    "ModelInfo",
    "PromptLogprobs",
    "SamplingDefaults",
    "Timings",
    "TokenLogprobs",
    "TopLogprob",
    "Usage",
]


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    # A reason that this version of the SDK does not know.
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One alternative for one position of an answer."""

    token_id: int
    logprob: float
    text: str


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The logprob of one token and of the likeliest alternatives.

    Natural logarithms, of the model's own distribution: before penalties, temperature and cuts.
    """

    logprob: float
    top: tuple[TopLogprob, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost, in tokens."""

    num_prompt_tokens: int
    num_output_tokens: int
    # Prompt tokens whose KV existed already.
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one answer went, by the router's clock."""

    prompt_queue_ms: float
    prefill_ms: float
    generation_queue_ms: float
    transfer_ms: float
    decode_ms: float
    ttft_ms: float
    # Mean time between output tokens after the first; None below two tokens.
    tpot_ms: float | None
    total_ms: float
    num_blocks_moved: int
    num_bytes_moved: int
    # Empty when nothing moved.
    transport: str
    prefill_worker: str
    decode_worker: str
    # Decode space was reserved while the prompt was still being computed.
    early_binding: bool
    # Each time that it made room counts once, whatever became of its KV.
    num_preemptions: int
    # How often a lost or failed worker made the sequence go on elsewhere.
    num_migrations: int
    # Blocks that the decode worker had already, so that they did not travel.
    num_blocks_skipped: int = 0
    # Of the preemptions, how often the KV was kept, in host memory.
    num_swaps: int = 0
    # Blocks of a running answer that it began in, because that one needed them only later.
    num_blocks_borrowed: int = 0


@dataclass(frozen=True, slots=True)
class Accepted:
    """The server has the request."""

    model: str
    num_prompt_tokens: int
    # True when the server knew the request already and replays it.
    attached: bool
    # The seed in use.
    seed: int
    # The limit in use; 0 where the server is older and does not say.
    max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens and new text of one answer. Nothing is ever delivered twice."""

    # Which of the n answers.
    index: int
    # Position of token_ids[0] in the answer.
    first_token_index: int
    token_ids: tuple[int, ...]
    # May lag behind the tokens while a character or a possible stop string is incomplete.
    text: str
    # One for each token where asked for, else empty.
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Logprobs of prompt tokens, where asked for: in order, before the first Delta."""

    # Position of the first of these in the prompt, at least 1.
    first_token_index: int
    logprobs: tuple[TokenLogprobs, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one answer."""

    index: int
    finish_reason: FinishReason
    # The stop string or the token id that ended it; None where neither did.
    matched_stop: str | int | None
    usage: Usage
    timings: Timings


# What a stream yields.
Event = Delta | Finished | PromptLogprobs


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole answer."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: FinishReason
    matched_stop: str | int | None
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Completion:
    """All n answers to one prompt. The properties speak of the first one."""

    request_id: str
    model: str
    # Giving it again gives the same tokens.
    seed: int
    choices: tuple[Choice, ...]
    # One for each prompt token, None for the first; empty where not asked for.
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.choices[0].finish_reason

    @property
    def timings(self) -> Timings:
        return self.choices[0].timings

    @property
    def usage(self) -> Usage:
        """The prompt once, the output of all answers together."""
        first = self.choices[0].usage
        return Usage(
            num_prompt_tokens=first.num_prompt_tokens,
            num_output_tokens=sum(choice.usage.num_output_tokens for choice in self.choices),
            num_cached_tokens=first.num_cached_tokens,
        )


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What the model does where a request says nothing; None where it has no opinion."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model and the limits of the cluster that serves it."""

    model: str
    architecture: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    has_chat_template: bool
    # The longest prompt plus max_tokens: what the connected workers can hold, and no more than
    # context_length. 0 while they can serve nobody.
    max_request_tokens: int
    default_sampling: SamplingDefaults
