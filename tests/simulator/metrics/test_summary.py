"""The JSON object of a run: complete, and defined as its docstring says."""

import pytest

from simulator.metrics.recorder import RunRecorder
from simulator.metrics.summary import RunFacts, RunResult, rounded, summary
from simulator.metrics.testing import InventedRun, one_request
from simulator.slo import RequestSlo

FACTS = RunFacts(policy="p", trace="t", cluster="c", hardware="h", seed=1, slo="none")
LATENCIES = ("ttft_ms", "tbt_ms", "tpot_ms", "jct_s")
# What other programs rely on.
DEMANDED = {
    *LATENCIES,
    "policy",
    "trace",
    "offered_rps",
    "goodput_rps",
    "throughput_rps",
    "slo_attainment",
    "preemptions",
    "kvc_allocated_share",
    "kvc_written_share",
    "gpus",
}


def test_the_object_has_what_is_promised() -> None:
    figures = summary(InventedRun().result())
    assert figures.keys() >= DEMANDED
    for name in LATENCIES:
        latency = figures[name]
        assert isinstance(latency, dict)
        assert list(latency) == ["mean", "p50", "p90", "p99", "max"]
        assert latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]


def test_rates_are_over_the_time_until_the_last_answer() -> None:
    recorder = RunRecorder()
    recorder.worker_added("w", "mixed", 10)
    for number in range(4):
        slo = RequestSlo(ttft_s=1.0 if number else 0.1)
        one_request(recorder, number, (number + 0.5, 8.0), at_s=float(number), slo=slo)
    figures = summary(RunResult(FACTS, recorder.finish(8.0)))
    assert figures["duration_s"] == 8.0
    # Four in the three seconds from the first arrival to the last.
    assert figures["offered_rps"] == pytest.approx(4 / 3, rel=1e-5)
    assert figures["throughput_rps"] == 0.5
    assert figures["goodput_rps"] == 0.375
    assert figures["slo_attainment"] == 0.75


@pytest.mark.parametrize("num_requests", [0, 1])
def test_a_run_with_hardly_anything_in_it_has_figures_as_well(num_requests: int) -> None:
    recorder = RunRecorder()
    for number in range(num_requests):
        one_request(recorder, number, (0.5,))
    figures = summary(RunResult(FACTS, recorder.finish(1.0)))
    assert figures["requests"] == num_requests
    assert figures["offered_rps"] is None
    assert figures["tbt_ms"] == dict.fromkeys(("mean", "p50", "p90", "p99", "max"))
    assert figures["kvc_written_share"] == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_goodput_is_never_more_than_throughput_nor_that_more_than_what_is_offered(
    seed: int,
) -> None:
    figures = summary(InventedRun(seed=seed, rate_scale=3.0).result())
    goodput, throughput = figures["goodput_rps"], figures["throughput_rps"]
    offered = figures["offered_rps"]
    assert isinstance(goodput, float)
    assert isinstance(throughput, float)
    assert isinstance(offered, float)
    assert goodput <= throughput <= offered


@pytest.mark.parametrize(
    ("value", "text"),
    [(1 / 3, "0.333333"), (-0.0, "0.0"), (1234567.0, "1234570.0"), (1e-9, "1e-09"), (2.0, "2.0")],
)
def test_numbers_have_six_digits(value: float, text: str) -> None:
    assert repr(rounded(value)) == text
