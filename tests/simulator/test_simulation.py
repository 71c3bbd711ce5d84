"""A workload through the product's cores: times by hand, and what must hold under any policy."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest

from scheduling.batch_time import BatchShape
from scheduling.policies import POLICIES
from simulator.cluster_spec import ClusterSpec, cluster_for
from simulator.hardware.description import load_hardware
from simulator.metrics.recorder import RunRecorder
from simulator.metrics.request_outcome import RequestOutcome, Status
from simulator.metrics.run_record import RunRecord
from simulator.model_timing import ModelTiming
from simulator.simulation import Scenario, Simulation
from simulator.simulation_testing import scene_of, simulated, with_kv_tokens
from simulator.slo import GapRule, RequestSlo
from simulator.traces.workload import TraceRequest

HARDWARE = load_hardware("h200")
MIXED = ClusterSpec(num_mixed=1)
scenario = partial(scene_of, hardware=HARDWARE)


def run(
    scene: Scenario, policy: str = "default", cluster: ClusterSpec = MIXED
) -> tuple[RunRecord, dict[int, RequestOutcome]]:
    """The record, and every request's outcome by its number."""
    return simulated(scene, POLICIES[policy], cluster)


def drawn_requests(num: int, seed: int, mean_gap_s: float = 0.02) -> list[TraceRequest]:
    rng = random.Random(seed)
    now, requests = 0.0, []
    for _ in range(num):
        lengths = rng.randint(1, 4000), rng.choice([1, 2, rng.randint(1, 300)])
        requests.append(TraceRequest(now, *lengths, tenant=rng.choice(["a", "b"])))
        now += rng.expovariate(1 / mean_gap_s)
    return requests


# --- by hand ----------------------------------------------------------------------------------


def timing() -> ModelTiming:
    model = HARDWARE.batch_time_model()
    return ModelTiming(model, HARDWARE.transfer.model(), HARDWARE.swap_model(), block_bytes=1)


def test_one_request_on_an_idle_mixed_worker_takes_what_the_model_and_the_links_say() -> None:
    _, outcomes = run(scenario([TraceRequest(0.0, 1000, 3)]))
    model, stated = HARDWARE.batch_time_model(), timing()
    prompt_s = model.seconds(BatchShape().with_chunk(0, 1000))
    # One question to the ledger, the command, the report.
    ttft_s = stated.ledger_latency_s + 2 * stated.link_latency_s + prompt_s
    assert outcomes[0].ttft_s == pytest.approx(ttft_s, rel=1e-12)
    # The worker goes on without waiting for anybody: what was sampled last is one token more.
    decode_s = sum(model.seconds(BatchShape().with_decode(context)) for context in (1001, 1002))
    assert outcomes[0].jct_s == pytest.approx(ttft_s + decode_s, rel=1e-12)


def test_a_prompt_longer_than_an_iteration_is_computed_in_pieces() -> None:
    budget = HARDWARE.limits.max_num_batched_tokens
    _, outcomes = run(scenario([TraceRequest(0.0, budget + 100, 1)]))
    model, stated = HARDWARE.batch_time_model(), timing()
    pieces = (BatchShape().with_chunk(0, budget), BatchShape().with_chunk(budget, 100))
    ttft_s = stated.ledger_latency_s + 2 * stated.link_latency_s + sum(map(model.seconds, pieces))
    assert outcomes[0].ttft_s == pytest.approx(ttft_s, rel=1e-12)
    assert outcomes[0].jct_s == outcomes[0].ttft_s


def test_between_separate_workers_the_kv_takes_its_time() -> None:
    requests = [TraceRequest(0.0, 1000, 3)]
    _, outcomes = run(scenario(requests), cluster=ClusterSpec(num_prefill=1, num_decode=1))
    model, stated = HARDWARE.batch_time_model(), timing()
    prompt_s = model.seconds(BatchShape().with_chunk(0, 1000))
    first_s = stated.ledger_latency_s + 2 * stated.link_latency_s + prompt_s
    assert outcomes[0].ttft_s == pytest.approx(first_s, rel=1e-12)
    num_blocks = -(-1000 // HARDWARE.kv.block_size)
    num_bytes = num_blocks * HARDWARE.kv.block_size * HARDWARE.kv.bytes_per_token
    transfer_s = HARDWARE.transfer.model().seconds(num_bytes)
    decode_s = sum(model.seconds(BatchShape().with_decode(context)) for context in (1001, 1002))
    # The router starts decode when it has heard of the first token.
    jct_s = outcomes[0].jct_s
    assert jct_s > first_s + transfer_s + decode_s
    assert jct_s < first_s + transfer_s + decode_s + 4 * stated.link_latency_s


def test_arrivals_come_so_many_times_faster() -> None:
    scene = scenario([TraceRequest(0.0, 10, 1), TraceRequest(8.0, 10, 1)], rate_scale=4.0)
    _, outcomes = run(scene)
    assert outcomes[1].arrived_at_s == 2.0


def test_phases_of_a_request_add_up_to_its_life() -> None:
    record, outcomes = run(scenario(drawn_requests(40, seed=1)))
    phases = record.requests.seconds_by_phase
    assert {name for name, seconds in phases.items() if seconds} == {
        "prompt_queued",
        "prefilling",
        "decoding",
    }
    lives_s = sum(outcome.jct_s for outcome in outcomes.values())
    assert sum(phases.values()) == pytest.approx(lives_s, rel=1e-9)


def test_the_router_is_told_by_when_a_whole_answer_is_wanted() -> None:
    requests = [TraceRequest(0.0, 2000, 50)] * 40
    slos = (RequestSlo(jct_s=600.0),) * 39 + (RequestSlo(jct_s=60.0),)
    _, outcomes = run(scenario(requests, slos=slos))
    jcts_s = {number: outcome.jct_s for number, outcome in outcomes.items()}
    # Some prompts went to the worker at once, before anything waited.
    assert jcts_s[39] < sorted(jcts_s.values())[20]


def test_single_gaps_are_kept_short_for_who_asks_for_that_and_not_for_the_mean_alone() -> None:
    # An answer runs; then prompts come of which only long passes bring the last in time.
    prompts = [TraceRequest(0.5, 4000, 1)] * 12
    longest_s = {}
    for rule in (GapRule.MEAN, GapRule.EACH):
        slos = (RequestSlo(ttft_s=1.0, gaps=((rule, 0.03),)), *[RequestSlo(ttft_s=0.9)] * 12)
        _, outcomes = run(scenario([TraceRequest(0.0, 500, 400), *prompts], slos=slos))
        gaps = outcomes[0].gaps
        assert gaps is not None
        longest_s[rule] = gaps.max
    assert longest_s[GapRule.EACH] < 0.03 < 0.08 < longest_s[GapRule.MEAN]


# --- under any policy ---------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("workers", ["mixed:2", "prefill:1,decode:2", "prefill:1,decode:1,mixed:1"])
def test_every_request_ends_once_with_the_tokens_of_the_trace(policy: str, workers: str) -> None:
    requests = drawn_requests(60, seed=2)
    cluster = cluster_for(workers, is_disaggregated=False)
    record, outcomes = run(scenario(requests), policy, cluster)
    assert sorted(outcomes) == list(range(60))
    for number, request in enumerate(requests):
        outcome = outcomes[number]
        assert outcome.status is Status.FINISHED
        assert outcome.num_output_tokens == request.num_output_tokens
        assert outcome.num_prompt_tokens == request.num_prompt_tokens
        assert outcome.ttft_s is not None
        assert 0 < outcome.ttft_s <= outcome.jct_s
    for role in record.roles:
        assert 0 < role.busy_s <= role.num_workers * record.end_s
        assert 0 <= role.written_block_s <= role.allocated_block_s <= role.capacity_block_s
    # Every token that was heard was computed: the first by a prompt's last chunk.
    num_computed = sum(role.num_decode_tokens + role.num_prompt_tokens for role in record.roles)
    num_heard = sum(r.num_prompt_tokens + r.num_output_tokens - 1 for r in requests)
    assert num_computed >= num_heard


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("swap_gib", [0, 2])
def test_memory_that_is_short_loses_nobody(policy: str, swap_gib: int) -> None:
    scarce = with_kv_tokens(HARDWARE, 8 * 1024)
    requests = drawn_requests(50, seed=3, mean_gap_s=0.001)
    scene = scenario(requests, hardware=scarce, swap_bytes=swap_gib * 2**30)
    record, outcomes = run(scene, policy)
    assert len(outcomes) == 50
    for number, request in enumerate(requests):
        assert outcomes[number].num_output_tokens == request.num_output_tokens
    assert record.requests.all.num_finished == 50
    assert swap_gib or not record.requests.num_swaps


def test_answers_end_where_callers_allow_no_more() -> None:
    _, outcomes = run(scenario([TraceRequest(0.0, 10, 100)], max_tokens=7))
    assert outcomes[0].num_output_tokens == 7


# --- closed conversations -------------------------------------------------------------------------


def turn(arrival_s: float, after_s: float | None, num_prompt_tokens: int = 100) -> TraceRequest:
    return TraceRequest(arrival_s, num_prompt_tokens, 5, session="talk", after_previous_s=after_s)


def test_a_turn_comes_so_long_after_the_answer_before_it() -> None:
    requests = [turn(0.0, None), TraceRequest(0.5, 10, 1), turn(1.0, 3.0), turn(2.0, 0.0)]
    _, outcomes = run(scenario(requests))
    assert outcomes[2].arrived_at_s == outcomes[0].ended_at_s + 3.0
    assert outcomes[3].arrived_at_s == outcomes[2].ended_at_s
    assert outcomes[1].arrived_at_s == 0.5


def test_pauses_are_as_many_times_shorter_as_arrivals() -> None:
    _, outcomes = run(scenario([turn(0.0, None), turn(1.0, 3.0)], rate_scale=2.0))
    assert outcomes[1].arrived_at_s == outcomes[0].ended_at_s + 1.5


def test_a_talk_goes_on_after_a_turn_that_failed() -> None:
    too_long = HARDWARE.kv.capacity_tokens
    requests = [turn(0.0, None), turn(1.0, 3.0, too_long), turn(2.0, 3.0)]
    _, outcomes = run(scenario(requests))
    assert [outcomes[number].status for number in range(3)] == ["finished", "failed", "finished"]
    assert outcomes[2].arrived_at_s == outcomes[1].ended_at_s + 3.0


def test_what_failed_is_told_with_its_first_message() -> None:
    too_long = HARDWARE.kv.capacity_tokens
    simulation = Simulation(
        scenario([TraceRequest(0.0, too_long, 1), TraceRequest(0.0, too_long + 1, 1)]),
        POLICIES["default"],
        MIXED,
        RunRecorder(),
    )
    simulation.run()
    (failure,) = simulation.failure_by_error.values()
    assert failure.count == 2
    assert str(too_long + 1024) in failure.first_message


# --- prefixes ---------------------------------------------------------------------------------


def named(arrival_s: float, names: tuple[int, ...], num_prompt_tokens: int) -> TraceRequest:
    """A prompt whose beginning is made of pieces of 64 tokens."""
    return TraceRequest(arrival_s, num_prompt_tokens, 2, prefix_ids=names, prefix_block_tokens=64)


def cached_tokens(requests: Sequence[TraceRequest], *, is_on: bool) -> list[int]:
    _, outcomes = run(scenario(requests, prefix_caching=is_on))
    return [outcomes[number].num_cached_tokens for number in range(len(requests))]


def test_prompts_share_exactly_the_pieces_of_equal_name() -> None:
    requests = [
        named(0.0, (1, 2, 3), 200),
        # The second piece differs, then the whole; the last piece is cut off by the prompt's end.
        named(10.0, (1, 9), 200),
        named(20.0, (7, 2, 3), 200),
        named(30.0, (1, 2, 3), 400),
        named(40.0, (1, 2, 3), 150),
    ]
    assert cached_tokens(requests, is_on=True) == [0, 64, 0, 192, 144]
    assert cached_tokens(requests, is_on=False) == [0] * 5


def test_what_no_name_covers_is_shared_with_nobody() -> None:
    requests = [named(float(second), (), 200) for second in range(3)]
    assert cached_tokens(requests, is_on=True) == [0, 0, 0]


def test_names_larger_than_token_ids_are_told_apart() -> None:
    first, second = 2**62, 2**62 + 2**32
    requests = [named(0.0, (first,), 100), named(9.0, (second,), 100), named(19.0, (first,), 100)]
    assert cached_tokens(requests, is_on=True) == [0, 0, 64]


@pytest.mark.parametrize("workers", ["mixed:1", "prefill:1,decode:1"])
def test_a_block_that_many_share_is_written_once(workers: str) -> None:
    requests = [
        replace(named(number / 10, (1, 2, 3, 4), 300), num_output_tokens=200)
        for number in range(40)
    ]
    cluster = cluster_for(workers, is_disaggregated=False)
    record, _ = run(scenario(requests, prefix_caching=True), cluster=cluster)
    for role in record.roles:
        assert 0 <= role.written_block_s <= role.allocated_block_s
    # 44 tokens and an answer of their own; what is reserved for it is written half the time.
    assert record.roles[-1].written_block_s > 0.3 * record.roles[-1].allocated_block_s
