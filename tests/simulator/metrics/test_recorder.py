"""What happens in a run becomes sums, shares and series."""

import math

import pytest

from simulator.metrics.recorder import RunRecorder
from simulator.metrics.request_outcome import RequestOutcome, Status
from simulator.metrics.role_tally import Iteration, WorkerSample
from simulator.metrics.testing import GOALS, one_request
from simulator.metrics.trace_log import TraceLog
from simulator.slo import RequestSlo


def test_attainment_counts_what_never_ended_as_missed() -> None:
    recorder = RunRecorder()
    one_request(recorder, 0, (0.5, 0.52), slo=GOALS)
    one_request(recorder, 1, (2.0, 2.02), slo=GOALS)
    one_request(recorder, 2, (0.5, 0.9), slo=GOALS)
    one_request(recorder, 3, (0.5,), slo=GOALS, status=Status.FAILED)
    recorder.arrived(4, 1.0, 10, GOALS)
    tally = recorder.finish(3.0).requests
    assert tally.all.num_requests == 5
    assert tally.all.num_finished == 3
    assert tally.num_failed == 1
    assert (tally.all.num_attained, tally.all.num_attained_ttft) == (1, 3)
    assert tally.all.num_attained_gaps == 2
    assert tally.all.share(tally.all.num_attained) == pytest.approx(0.2)


def test_latencies_are_those_of_finished_requests() -> None:
    recorder = RunRecorder()
    one_request(recorder, 0, (1.0, 2.0))
    one_request(recorder, 1, (50.0, 90.0), status=Status.FAILED)
    tally = recorder.finish(90.0).requests
    assert (tally.ttft.count, tally.ttft.largest) == (1, 1.0)
    assert (tally.tbt.count, tally.tpot.count, tally.jct.count) == (1, 1, 1)


def test_classes_are_told_apart() -> None:
    recorder = RunRecorder()
    one_request(recorder, 0, (1.0,), slo=RequestSlo("fast", ttft_s=0.5))
    one_request(recorder, 1, (1.0,), slo=RequestSlo("slow", ttft_s=5.0))
    by_class = recorder.finish(1.0).requests.by_class
    attained = {name: one.num_attained for name, one in by_class.items()}
    assert attained == {"fast": 0, "slow": 1}


def test_what_arrives_before_the_end_of_the_warm_up_is_not_counted() -> None:
    told: list[RequestOutcome] = []
    recorder = RunRecorder(warmup_s=10.0, on_outcome=told.append)
    recorder.worker_added("w", "mixed", 100)
    recorder.sampled("w", 0.0, WorkerSample(100, 80.0, 4, 0))
    recorder.iterated("w", Iteration(1.0, 2.0, 4, 100))
    one_request(recorder, 0, (12.0,), at_s=9.0)
    recorder.sampled("w", 15.0, WorkerSample(0, 0.0, 0, 0))
    one_request(recorder, 1, (16.0,), at_s=11.0)
    recorder.iterated("w", Iteration(16.0, 18.0, 1, 0))
    record = recorder.finish(20.0)
    assert len(told) == 2
    assert record.requests.all.num_requests == 1
    assert record.duration_s == pytest.approx(6.0)
    (role,) = record.roles
    assert (role.num_iterations, role.busy_s) == (1, 2.0)
    # Full for five of the ten seconds that are measured.
    assert role.allocated_block_s / role.capacity_block_s == pytest.approx(0.5)
    assert role.written_block_s / role.capacity_block_s == pytest.approx(0.4)


def test_shares_weigh_workers_by_their_pools_and_by_time() -> None:
    recorder = RunRecorder()
    recorder.worker_added("small", "decode", 100)
    recorder.worker_added("large", "decode", 300)
    recorder.sampled("small", 0.0, WorkerSample(100, 50.0, 1, 0))
    recorder.sampled("large", 5.0, WorkerSample(300, 300.0, 1, 0))
    (role,) = recorder.finish(10.0).roles
    assert role.capacity_block_s == 4000
    assert role.allocated_block_s == 100 * 10 + 300 * 5
    assert role.written_block_s == 50 * 10 + 300 * 5


def test_a_worker_that_leaves_takes_its_pool_along() -> None:
    recorder = RunRecorder()
    recorder.worker_added("stays", "decode", 100, num_gpus=2)
    recorder.worker_added("leaves", "decode", 100, num_gpus=2)
    recorder.sampled("leaves", 0.0, WorkerSample(100, 100.0, 3, 1))
    recorder.worker_removed("leaves", 5.0)
    record = recorder.finish(10.0)
    (role,) = record.roles
    assert role.capacity_block_s == 1500
    assert role.allocated_block_s == 500
    assert role.mean_running == pytest.approx(1.5)
    assert record.kvc_allocated_share.values[-1] == 0.0
    assert record.num_gpus == 4


def test_iterations_are_shown_where_they_began() -> None:
    recorder = RunRecorder()
    recorder.worker_added("p", "prefill", 10)
    recorder.worker_added("d", "decode", 10)
    recorder.iterated("p", Iteration(0.0, 0.5, 0, 300))
    recorder.iterated("d", Iteration(0.0, 0.5, 100, 0))
    recorder.iterated("d", Iteration(3.0, 3.5, 7, 0))
    tokens = recorder.finish(1000.0).iteration_tokens
    assert tokens.values[0] == 200.0
    assert [value for value in tokens.values if not math.isnan(value)] == [200.0, 7.0]


def test_phases_are_summed_over_finished_requests() -> None:
    recorder = RunRecorder()
    live = recorder.arrived(0, 0.0, 10)
    for phase, at_s in (("prompt_queued", 0.0), ("prefilling", 1.0), ("decoding", 3.0)):
        live.enter(phase, at_s)
    live.enter("prompt_queued", 4.0)
    live.enter("decoding", 4.5)
    live.emit(5.0)
    recorder.ended(live, 6.0)
    seconds = recorder.finish(6.0).requests.seconds_by_phase
    assert seconds == {"prompt_queued": 1.5, "prefilling": 2.0, "decoding": 2.5}


def test_the_trace_keeps_the_first_requests_and_says_what_it_dropped() -> None:
    log = TraceLog(max_requests=2, max_iterations=3)
    recorder = RunRecorder(trace=log)
    recorder.worker_added("w", "mixed", 10)
    for number in range(5):
        live = recorder.arrived(number, float(number), 10)
        live.enter("decoding", float(number), "w")
        recorder.iterated("w", Iteration(float(number), number + 0.5, 1, 0))
        recorder.sampled("w", float(number), WorkerSample(1, 1.0, 1, 0))
        recorder.ended(live, number + 0.5)
    assert [request.number for request in log.requests] == [0, 1]
    assert [(phase.number, phase.name) for phase in log.phases] == [
        (0, "decoding"),
        (1, "decoding"),
    ]
    assert (len(log.iterations), log.num_dropped_iterations, len(log.kv)) == (3, 2, 3)
