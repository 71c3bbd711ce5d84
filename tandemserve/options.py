"""What a caller may choose: the options of a generation, messages, TLS. Free of gRPC."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

__all__ = ["ChatMessage", "GenerateOptions", "RequestClassName", "TLSConfig"]

DEFAULT_TARGET = "127.0.0.1:7700"
RequestClassName = Literal["interactive", "standard", "batch"]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation; `{"role": ..., "content": ...}` works as well."""

    # "system", "user" or "assistant".
    role: str
    content: str


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of generate, stream, chat and stream_chat; None means unset."""

    # At least 1. Unset means the rest of the context, at most 256.
    max_tokens: int | None
    # 0 is greedy. Unset takes the model's own default; so do the next four.
    temperature: float | None
    # 0 keeps all tokens.
    top_k: int | None
    # In (0, 1].
    top_p: float | None
    # Keeps tokens at least this times as likely as the likeliest, 0 (all) to 1.
    min_p: float | None
    # Above 1 makes what prompt and answer hold already less likely; above 0.
    repetition_penalty: float | None
    # Taken from the logits of tokens in the answer, once and for each time, -2 to 2.
    presence_penalty: float | None
    frequency_penalty: float | None
    # What is added to the logits of which token ids, -100 to 100; at most 1024.
    logit_bias: Mapping[int, float] | None
    # The same seed gives the same tokens, whatever else runs. Unset follows from the request_id.
    seed: int | None
    # One string or several, never emitted, not even in part.
    stop: str | Sequence[str] | None
    # In addition to the model's own end tokens.
    stop_token_ids: Sequence[int] | None
    # Goes on past the model's own end tokens.
    ignore_eos: bool
    # No end and no stop before the answer has this many tokens; at most max_tokens.
    min_tokens: int | None
    # How many answers to the same prompt, 1 to 16.
    n: int
    # Report the logprob of each token and of this many alternatives, 0 to 20.
    logprobs: int | None
    # The same of each prompt token but the first, 0 to 20.
    prompt_logprobs: int | None
    # Wanted time to first token, and mean time between later tokens; unset takes what is usual for
    # the request_class, or none where jct_ms is given.
    ttft_ms: float | None
    tpot_ms: float | None
    # Wanted time to the last token of each answer. Missing it ends nothing, unlike timeout_s.
    jct_ms: float | None
    # Wanted longest time between two tokens, where each gap counts and not only their mean.
    tbt_ms: float | None
    request_class: RequestClassName | None
    # Whom the work is done for.
    tenant: str | None
    # Turns of one conversation carry the same session.
    session: str | None
    # Share cached prompts only with requests of equal salt: a secret of yours.
    cache_salt: str | None
    # Repeating a call with the same id and content attaches to it. Unset draws one.
    request_id: str | None
    # For the whole call with its retries; unset takes the client's.
    timeout_s: float | None
    # Unset means the only model served.
    model: str | None


@dataclass(frozen=True, slots=True)
class TLSConfig:
    """PEM files. No ca means the authorities gRPC ships; cert and key are for mutual TLS."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together; give both or neither")
