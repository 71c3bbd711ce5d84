"""Swap a victim's KV out, or drop it and compute it again? The cheaper by measured cost.

CacheOPT's rule per victim: long ones are swapped, short ones recomputed. The crossover follows from
the model, the GPU and its link, so it is computed from the batch-time and swap models. A worker
feeds them with what it measures (`recovery_costs`).
"""

from enum import Enum, StrEnum

from scheduling.batch_time import BatchShape, BatchTimeModel, SwapTimeModel

_NOTHING = BatchShape()


class Recovery(Enum):
    """How a preempted sequence comes back."""

    SWAP = "swap"
    RECOMPUTE = "recompute"


class Preemption(StrEnum):
    """What a worker does where a sequence has to make room; the policy has said which is first."""

    # What costs the first one less by measured cost; it gives its KV up where host memory is full.
    CHEAPER = "cheaper"
    # The first one moves to host memory, and gives its KV up where that is full.
    FIRST = "first"
    # Look for one that host memory has room for.
    SWAP = "swap"
    # The first one gives its KV up.
    RECOMPUTE = "recompute"


def swap_seconds(
    num_tokens: int, kv_bytes_per_token: int, swap: SwapTimeModel, hidden_fraction: float = 0.0
) -> float:
    """KV out and in again, less the fraction that runs beside computation."""
    if not 0 <= hidden_fraction <= 1:
        raise ValueError(f"hidden_fraction must be in [0, 1], got {hidden_fraction}")
    return (1 - hidden_fraction) * swap.round_trip_seconds(num_tokens * kv_bytes_per_token)


def recompute_seconds(
    num_tokens: int,
    model: BatchTimeModel,
    max_chunk_tokens: int,
    beside: BatchShape = _NOTHING,
) -> float:
    """All tokens as a prompt, in chunks of at most `max_chunk_tokens`.

    What they add to passes that run anyway: those of the shape `beside`, each chunk in one. With
    nothing beside them the whole passes count.
    """
    if max_chunk_tokens < 1:
        raise ValueError(f"max_chunk_tokens must be at least 1, got {max_chunk_tokens}")
    anyway_s = model.seconds(beside)
    added_s = 0.0
    for start in range(0, num_tokens, max_chunk_tokens):
        chunk = beside.with_chunk(start, min(max_chunk_tokens, num_tokens - start))
        added_s += model.seconds(chunk) - anyway_s
    return added_s


def choose_recovery(swap_cost_s: float, recompute_cost_s: float) -> Recovery:
    """The smaller cost; computing again where they are equal, as it needs no host memory."""
    return Recovery.SWAP if swap_cost_s < recompute_cost_s else Recovery.RECOMPUTE


def crossover_tokens(
    model: BatchTimeModel,
    swap: SwapTimeModel,
    kv_bytes_per_token: int,
    max_chunk_tokens: int,
    max_tokens: int,
    hidden_fraction: float = 0.0,
    beside: BatchShape = _NOTHING,
) -> int | None:
    """The fewest tokens from which on swapping is cheaper; None when it is not up to max_tokens.

    By bisection: right where the two costs cross once, which they do when recomputation grows
    at least as fast as the copy. Computed at start, looked up at each preemption.
    """

    def is_swap_cheaper(num_tokens: int) -> bool:
        swapping = swap_seconds(num_tokens, kv_bytes_per_token, swap, hidden_fraction)
        computing = recompute_seconds(num_tokens, model, max_chunk_tokens, beside)
        return choose_recovery(swapping, computing) is Recovery.SWAP

    if max_tokens < 1 or not is_swap_cheaper(max_tokens):
        return None
    low, high = 0, max_tokens
    while high - low > 1:
        middle = (low + high) // 2
        if is_swap_cheaper(middle):
            high = middle
        else:
            low = middle
    return high
