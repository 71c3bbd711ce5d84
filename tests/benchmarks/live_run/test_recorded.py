"""What a run is compared by, and what is fitted to it, comes out of its recording as it went in."""

import json
from pathlib import Path

import pytest

from benchmarks.live_run.cluster import drawn
from benchmarks.live_run.fitting import unbiased_fit
from benchmarks.live_run.recorded import LoggedPass, RecordedRun, link_s, measured, passes_of
from router.recording.testing import opened, setup_of
from scheduling.batch_time import BatchShape
from scheduling.batch_time_fit import MeasuredBatch
from scheduling.ids import RequestId
from simulator.replay_testing import recorded_cluster
from simulator.testing import asks_at_once, run_and_check

DECODE = BatchShape(4, 400)


def logged(began_at_s: float, ended_at_s: float, follows: bool = True) -> LoggedPass:
    return LoggedPass(began_at_s, ended_at_s, follows, DECODE)


def test_requests_and_their_times_are_those_of_the_cluster() -> None:
    cluster, core = recorded_cluster(3, setup_of(max_backlog_tokens=24), 40, ("mixed-0",))
    run_and_check(cluster, asks_at_once(5))
    run = RecordedRun.of(opened(core.recording()))
    assert len(run.answered) == len(cluster.finished) == 5
    for (request_id, _), finished in cluster.finished.items():
        answered = run.answered[request_id]
        assert answered.num_output_tokens == finished.num_output_tokens
        assert answered.total_s == finished.timings.total_s
        assert answered.num_prompt_tokens >= 1
    # Random delays of the simulated ledger: each below 2 ms.
    assert run.ledger_s
    assert all(0 <= took <= 0.002 for _, took in run.ledger_s)
    assert len(run.prompts_sent_at_s["mixed-0"]) == 5


def test_pieces_of_a_load_are_told_apart_by_request_ids() -> None:
    run = RecordedRun()
    for number, request_id in enumerate(("fit.0-0", "run.0-0", "run.0-1", "run.1-0", "other")):
        run._arrived[RequestId(request_id)] = float(10 * number), 7
        timings = {"ttft_s": 1.0, "tpot_s": None, "total_s": 2.0}
        finished = {"is": "EmitFinished", "request_id": request_id, "num_output_tokens": 1}
        run._perform(finished | {"timings": timings}, 10 * number + 2.0)
    assert [one.piece for one in run.requests("run")] == [0, 0, 1]
    assert run.spans("run") == [(10.0, 22.0), (30.0, 32.0)]
    assert [one.arrival_s for one in run.workload("run").requests] == [0.0, 10.0, 20.0]


def test_a_pass_lasts_until_the_next_one_could_begin() -> None:
    passes = [
        logged(1.000, 1.010),
        logged(1.012, 1.020),
        # The engine waited in between: for how long it would have been busy is the mean.
        logged(1.500, 1.510, follows=False),
        logged(1.514, 1.520),
        logged(9.0, 9.1),
    ]
    rows = measured(passes, [(0.9, 2.0)])
    pauses_s = (0.002, 0.004, 9.0 - 1.520)
    usual_s = sum(pauses_s) / 3
    expected = [0.012, 0.008 + usual_s, 0.014, 0.006 + pauses_s[2]]
    assert [row.seconds for row in rows] == pytest.approx(expected)


def test_a_link_takes_the_mean_of_both_ways() -> None:
    run = RecordedRun()
    # To an idle worker, and to one that is busy: that says nothing.
    run.prompts_sent_at_s["w"] = [0.990, 1.005]
    run.reports_at_s["w"] = [1.013]
    ways = (0.010, 0.003)
    passes = {"w": [logged(1.000, 1.010), logged(1.012, 1.020)]}
    assert link_s(run, passes) == pytest.approx(sum(ways) / 2)


def test_the_log_of_a_worker_is_read(tmp_path: Path) -> None:
    told = {
        "event": "pass_computed",
        "began_at_s": 1.0,
        "ended_at_s": 1.5,
        "follows_at_once": True,
        "num_decode": 4,
        "decode_context": 400,
        "num_prompt_tokens": 0,
        "prompt_attention": 0,
    }
    path = tmp_path / "mixed-0.log"
    path.write_text(f'{{"event": "worker_ready"}}\n{json.dumps(told)}\n')
    assert passes_of(path) == [logged(1.0, 1.5)]


def test_the_fit_gives_means_also_where_some_passes_are_held_up() -> None:
    rows = [MeasuredBatch(DECODE, 0.001 if number % 10 else 0.011) for number in range(100)]
    assert unbiased_fit(rows).seconds(DECODE) == pytest.approx(0.002, rel=0.01)


def test_loads_are_drawn_alike_and_the_same_again() -> None:
    load = drawn("run.0", 3, 10.0, 20.0, 64)
    assert load == drawn("run.0", 3, 10.0, 20.0, 64) != drawn("run.0", 4, 10.0, 20.0, 64)
    assert 120 < len(load.requests) < 280
    assert load.requests[0].arrival_s == 0.0
