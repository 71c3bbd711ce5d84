"""Ratios are taken within a block, and what a router adds is what is left without the worker."""

from benchmarks.router_load.comparison import ALONE, HALF_LOAD, ratio_lines, ratios, targets_of

BUSY = "short, 64 at a time"


def test_a_ratio_is_taken_within_its_block() -> None:
    mine, theirs = [{"x": 1.0}, {"x": 6.0}, {"x": 1.0}], [{"x": 2.0}, {"x": 3.0}, {"x": 0.0}]
    assert ratios(mine, theirs, "x") == [0.5, 2.0]


def test_only_loads_that_both_have_are_compared() -> None:
    figures = {"requests_s": 2.0, "cpu_us_per_request": 1.0, "latency_p99_ms": 1.0}
    lines = ratio_lines(
        {"tandem": {BUSY: [figures], "short, 64, token ids": [figures]}},
        {"smg": {BUSY: [figures]}},
    )
    assert len(lines) == 2
    assert "requests/s 1.00" in lines[1]


def test_the_workers_own_latency_does_not_count_as_added() -> None:
    rows = {
        BUSY: [{"requests_s": 1200.0}],
        HALF_LOAD: [{"requests_s": 600.0, "latency_p99_ms": 9.0}],
        ALONE: [{"requests_s": 600.0, "latency_p99_ms": 5.0}],
    }
    requests, added = targets_of("tandem", rows)
    assert requests.is_met
    assert added.values == (4.0,)
    assert added.is_met
