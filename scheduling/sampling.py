"""What a client asks of the next token and of the end of the answer, already resolved."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence draws its tokens. The same seed gives the same tokens in any batch."""

    # 0 is greedy: the most likely token, the lowest id on a tie.
    temperature: float = 1.0
    # Keep the k most likely tokens; 0 keeps all.
    top_k: int = 0
    # Keep the smallest set whose probability reaches this, in (0, 1].
    top_p: float = 1.0
    # 64-bit; the router draws one where the client gave none.
    seed: int = 0
    # Report the logprob of each token and of this many alternatives; None reports nothing.
    num_logprobs: int | None = None


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
