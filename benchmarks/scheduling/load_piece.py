"""The piece of a trace that one pair is measured with."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.scheduling.cells import TraceFile
from simulator.demand import demand_of
from simulator.hardware.description import Hardware
from simulator.load import DEFAULT_SWAP_GIB, Load, LoadSettings
from simulator.slo import ModelledIdleTimes, RequestSlo
from simulator.traces.reading import read_workload
from simulator.traces.workload import TraceRequest, Workload

# At the rate that a cluster sustains, a piece should last so long, and so many times the goal of a
# first token: else all of it may wait in a queue and still be in time. Within limits of its length.
_WANTED_S, _WANTED_GOALS = 60.0, 10.0
# Prompt tokens of a piece: what a simulation takes grows with them.
_MAX_PROMPT_TOKENS = 5_000_000
# Prompts of this mean length are cached in larger blocks: most time would go into hashing them.
_LONG_PROMPT_TOKENS, _LONG_BLOCK_TOKENS = 4096, 64
# Goals that more than so many miss on an idle cluster say nothing about scheduling.
_MAX_HOPELESS = 0.05
# They scale with the request, and are published too.
_RELATIVE_GOALS = "published:splitwise/p99"
# Of a worker's KV, what one request may need: some is kept for answers that grow.
_MAX_SHARE = 0.9


def piece_of(workload: Workload, num_requests: int, seed: int) -> Workload:
    """So many requests in a row, from a drawn place on; bursts stay as they are.

    Of conversations that wait for answers, the first: one that is cut off at its beginning waits
    for nothing.
    """
    requests = workload.requests
    if len(requests) <= num_requests or workload.is_closed:
        return replace(workload, requests=requests[:num_requests])
    first = random.Random(f"{workload.name} {seed}").randrange(len(requests) - num_requests + 1)
    chosen = requests[first : first + num_requests]
    begin_s = chosen[0].arrival_s
    moved = (replace(request, arrival_s=request.arrival_s - begin_s) for request in chosen)
    return replace(workload, requests=tuple(moved))


def fitting(workload: Workload, capacity_tokens: int) -> tuple[Workload, int]:
    """Without requests that no worker could hold, and how many these are.

    Callers do not know how long answers get: each allows as many tokens as the longest has, as a
    power of two. Of a conversation, what follows a request that is left out is left out too.
    """
    most = int(_MAX_SHARE * capacity_tokens)
    # One answer that is too long must not make every request so.
    requests = _within(workload, workload.requests, most, 0)
    while requests:
        allowed = max(_power_of_two(request.num_output_tokens) for request in requests)
        kept = _within(workload, requests, most, allowed)
        if len(kept) == len(requests):
            break
        requests = kept
    num_left_out = len(workload.requests) - len(requests)
    if not requests:
        return workload, num_left_out
    begin_s = requests[0].arrival_s
    moved = tuple(replace(request, arrival_s=request.arrival_s - begin_s) for request in requests)
    return replace(workload, requests=moved), num_left_out


def _within(
    workload: Workload, requests: Sequence[TraceRequest], most: int, allowed: int
) -> list[TraceRequest]:
    kept: list[TraceRequest] = []
    cut_sessions: set[str] = set()
    for request in requests:
        answer = max(allowed, _power_of_two(request.num_output_tokens))
        is_cut = workload.is_closed and request.session in cut_sessions
        if is_cut or request.num_prompt_tokens + answer > most:
            cut_sessions.add(request.session)
        else:
            kept.append(request)
    return kept


def _power_of_two(num_tokens: int) -> int:
    return 1 << (num_tokens - 1).bit_length()


def hopeless_share(
    requests: Sequence[TraceRequest], slos: Sequence[RequestSlo], idle: ModelledIdleTimes
) -> float:
    """Of the requests, those that miss a goal even on an idle cluster."""
    num_hopeless = 0
    for request, slo in zip(requests, slos, strict=True):
        first_s = idle.first_token_s(request.num_prompt_tokens)
        token_s = idle.per_token_s(request.num_prompt_tokens, request.num_output_tokens)
        num_hopeless += first_s > slo.ttft_s or token_s > slo.tpot_s
    return num_hopeless / len(requests)


def load_of(
    workload: Workload,
    hardware: Hardware,
    seed: int,
    slo: str | None = None,
    swap_gib: float = DEFAULT_SWAP_GIB,
) -> Load:
    """With the goals of that text; without it with the published ones, or where these are out of
    reach, with relative ones. Raises: SloTextInvalid."""
    mean = statistics.fmean(request.num_prompt_tokens for request in workload.requests)
    block_size = _LONG_BLOCK_TOKENS if mean >= _LONG_PROMPT_TOKENS else None
    settings = LoadSettings(seed=seed, block_size=block_size, swap_gib=swap_gib)
    if slo is not None:
        return Load.of(workload, hardware, replace(settings, slo=slo))
    load = Load.of(workload, hardware, settings)
    if hopeless_share_of(load) <= _MAX_HOPELESS:
        return load
    return Load.of(workload, hardware, replace(settings, slo=_RELATIVE_GOALS))


def hopeless_share_of(load: Load) -> float:
    """See `hopeless_share`, on the hardware of the load."""
    model, chunk = load.hardware.batch_time_model(), load.hardware.limits.max_num_batched_tokens
    return hopeless_share(load.workload.requests, load.slos, ModelledIdleTimes(model, chunk))


def sustained_scale(load: Load, num_workers: int) -> float:
    """So many times the rate of the load would keep all workers busy if nothing ever waited."""
    demand = demand_of(load, 1.0)
    return num_workers / (demand.prefill + demand.decode)


def num_wanted(load: Load, num_workers: int, least: int, most: int) -> int:
    """So many requests come in the time that a piece should last, at the rate sustained."""
    rate = (load.workload.mean_rps or 1.0) * sustained_scale(load, num_workers)
    goal_s = statistics.fmean(min(slo.ttft_s, _WANTED_S) for slo in load.slos)
    mean = statistics.fmean(request.num_prompt_tokens for request in load.workload.requests)
    most = min(most, int(_MAX_PROMPT_TOKENS / mean))
    return max(least, min(most, int(max(_WANTED_S, _WANTED_GOALS * goal_s) * rate)))


def read_trace(folder: Path, trace: TraceFile, seed: int) -> Workload:
    """The whole file; drawn arrivals come once a second on average. Raises: TraceError."""
    return read_workload(folder / trace.name, rate_rps=1.0 if trace.is_drawn else None, seed=seed)
