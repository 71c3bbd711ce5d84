"""How many workers a load keeps busy if nothing ever waits or goes idle: where a search begins."""

import statistics
from dataclasses import dataclass

from scheduling.batch_time import BatchShape, BatchTimeModel, chunk_attention
from simulator.load import Load

# Attention is told apart from the rest of a pass by a pass with so many pairs more.
_MANY_PAIRS = 10**8


@dataclass(frozen=True, slots=True)
class Demand:
    """Workers, not whole ones."""

    prefill: float
    decode: float


def demand_of(load: Load, rate_scale: float) -> Demand:
    """At so many times the rate of the load; a worker for each where all arrive at once."""
    span_s = load.workload.span_s / rate_scale
    if span_s <= 0:
        return Demand(1.0, 1.0)
    model = load.hardware.batch_time_model()
    return Demand(_prompt_s(load, model) / span_s, _answer_s(load, model) / span_s)


def _prompt_s(load: Load, model: BatchTimeModel) -> float:
    """All prompts in passes that are full; what is cached once is never computed again."""
    num_full = load.hardware.limits.max_num_batched_tokens
    full_s = model.seconds(BatchShape(num_prompt_tokens=num_full))
    with_pairs = BatchShape(num_prompt_tokens=num_full, prompt_attention=_MANY_PAIRS)
    pair_s = (model.seconds(with_pairs) - full_s) / _MANY_PAIRS
    seen: set[int] = set()
    num_tokens = num_pairs = 0
    for request in load.workload.requests:
        num_known = 0
        if load.prefix_caching:
            for name in request.prefix_ids:
                if name not in seen:
                    break
                num_known += request.prefix_block_tokens
            seen.update(request.prefix_ids)
        num_known = min(num_known, request.num_prompt_tokens - 1)
        num_new = request.num_prompt_tokens - num_known
        num_tokens += num_new
        num_pairs += chunk_attention(num_known, num_new)
    return num_tokens * full_s / num_full + num_pairs * pair_s


def _answer_s(load: Load, model: BatchTimeModel) -> float:
    """All answers in batches as large as memory and the goal per token allow."""
    requests = load.workload.requests
    num_tokens = sum(request.num_output_tokens for request in requests)
    context = int(statistics.fmean(r.num_prompt_tokens + r.num_output_tokens / 2 for r in requests))
    limits, kv = load.hardware.limits, load.hardware.kv
    largest = max(1, min(limits.max_num_seqs, kv.capacity_tokens // context))
    goal_s = load.plan.fixed_token_s
    low, high = 1, largest
    while goal_s is not None and low < high:
        middle = (low + high + 1) // 2
        if _batch_s(model, middle, context) <= goal_s:
            low = middle
        else:
            high = middle - 1
    size = largest if goal_s is None else low
    return num_tokens * _batch_s(model, size, context) / size


def _batch_s(model: BatchTimeModel, size: int, context: int) -> float:
    return model.seconds(BatchShape(num_decode=size, decode_context=size * context))
