import math
from itertools import pairwise

from benchmarks.scheduling.load_piece import (
    fitting,
    hopeless_share,
    hopeless_share_of,
    load_of,
    piece_of,
)
from simulator.hardware.description import load_hardware
from simulator.load import Load, LoadSettings
from simulator.slo import ModelledIdleTimes, RequestSlo
from simulator.traces.workload import TraceRequest, Workload

HARDWARE = load_hardware("a100_opt13b")


def workload(*lengths: tuple[int, int], gaps_s: float = 1.0) -> Workload:
    requests = (TraceRequest(gaps_s * i, *both) for i, both in enumerate(lengths))
    return Workload("made", tuple(requests))


def test_a_piece_begins_at_zero_and_keeps_the_gaps() -> None:
    whole = Workload("made", tuple(TraceRequest(i * i / 7, 10 + i, 5) for i in range(100)))

    piece = piece_of(whole, 20, seed=1)

    assert len(piece.requests) == 20
    assert piece.requests[0].arrival_s == 0
    first = piece.requests[0].num_prompt_tokens - 10
    there = whole.requests[first : first + 20]
    gaps = [b.arrival_s - a.arrival_s for a, b in pairwise(there)]
    assert all(
        math.isclose(b.arrival_s - a.arrival_s, gap, abs_tol=1e-9)
        for (a, b), gap in zip(pairwise(piece.requests), gaps, strict=True)
    )


def test_the_same_seed_takes_the_same_piece() -> None:
    whole = workload(*[(10 + i, 5) for i in range(1000)])
    assert piece_of(whole, 20, seed=3) == piece_of(whole, 20, seed=3)
    assert piece_of(whole, 20, seed=3) != piece_of(whole, 20, seed=4)


def test_what_no_worker_could_hold_is_left_out_and_counted() -> None:
    kept, num_left_out = fitting(workload((2000, 10), (100, 10), (50, 10)), capacity_tokens=1000)

    assert num_left_out == 1
    assert [request.num_prompt_tokens for request in kept.requests] == [100, 50]
    assert kept.requests[0].arrival_s == 0


def test_one_answer_that_is_too_long_does_not_make_every_request_so() -> None:
    kept, num_left_out = fitting(workload((100, 10), (100, 1000)), capacity_tokens=1000)

    assert num_left_out == 1
    assert [request.num_output_tokens for request in kept.requests] == [10]


def test_callers_allow_as_much_as_the_longest_answer_has() -> None:
    kept, num_left_out = fitting(workload((600, 10), (100, 500)), capacity_tokens=1000)

    assert num_left_out == 1
    assert [request.num_prompt_tokens for request in kept.requests] == [100]


def test_what_waits_for_a_turn_that_is_left_out_is_left_out_too() -> None:
    first = TraceRequest(0.0, 2000, 10, session="a")
    second = TraceRequest(1.0, 10, 10, session="a", after_previous_s=1.0)
    other = TraceRequest(2.0, 10, 10, session="b")

    kept, num_left_out = fitting(Workload("made", (first, second, other)), capacity_tokens=1000)

    assert num_left_out == 2
    assert [request.session for request in kept.requests] == ["b"]


def test_goals_that_an_idle_cluster_misses_are_hopeless() -> None:
    idle = ModelledIdleTimes(HARDWARE.batch_time_model())
    requests = workload((100, 10), (8000, 10)).requests
    goals = (RequestSlo(ttft_s=0.25), RequestSlo(ttft_s=0.25))
    assert hopeless_share(requests, goals, idle) == 0.5


def test_where_published_goals_are_out_of_reach_they_grow_with_the_request() -> None:
    short = load_of(workload(*[(300, 200)] * 20), HARDWARE, seed=0)
    assert short.plan.fixed_ttft_s == 0.25

    long = load_of(workload(*[(3500, 1000)] * 20), HARDWARE, seed=0)
    assert "splitwise" in long.plan.source


def test_published_goals_stay_where_they_are_asked_for_though_out_of_reach() -> None:
    long = workload(*[(3500, 1000)] * 20)

    found = load_of(long, HARDWARE, seed=0, slo="published")

    without_slo = Load.of(long, HARDWARE, LoadSettings())
    assert (found.plan, found.slos) == (without_slo.plan, without_slo.slos)
    assert "splitwise" not in found.plan.source
    assert hopeless_share_of(found) == 1.0
    assert hopeless_share_of(load_of(long, HARDWARE, seed=0)) == 0.0
