"""Requests drawn from statistics of clients."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean, pvariance, quantiles

import pytest

from simulator.traces.client_tables import read_clients
from simulator.traces.csv_table import CsvTable
from simulator.traces.errors import TraceEmpty, TraceFieldInvalid, TraceTooLarge
from simulator.traces.lines import open_trace
from simulator.traces.options import HeldLimits, ReadOptions
from simulator.traces.reading import read_workload

HEADER = (
    "slot_start_s,client,mean_rps,peak_rps,active_fraction,iat_cv_median,iat_family,"
    "in_mean,in_p50,in_p90,in_p99,out_mean,out_p50,out_p90,out_p99"
)
LENGTHS = "427.5,275,380,4826,147.5,73,196,1857"
Write = Callable[..., Path]


def test_a_client_is_drawn_with_its_rate_and_its_percentiles(write: Write) -> None:
    path = write("clients.csv.gz", HEADER, f"0,9,0.5,1.0,1.00,1.0,Gamma,{LENGTHS}")

    workload = read_workload(path, seed=1)

    assert len(workload.requests) == pytest.approx(0.5 * 21_600, rel=0.05)
    assert {request.tenant for request in workload.requests} == {"9"}
    prompts = quantiles((r.num_prompt_tokens for r in workload.requests), n=100)
    assert [prompts[49], prompts[89]] == pytest.approx([275, 380], rel=0.05)
    assert prompts[98] == pytest.approx(4826, rel=0.3)
    assert mean(r.num_prompt_tokens for r in workload.requests) == pytest.approx(427.5, rel=0.1)
    assert mean(r.num_output_tokens for r in workload.requests) == pytest.approx(147.5, rel=0.1)
    assert "Requests were drawn from the statistics of 1 clients" in workload.notes[0]


@pytest.mark.parametrize("family", ["Gamma", "Weibull"])
def test_gaps_have_the_published_variation(write: Write, family: str) -> None:
    path = write("clients.csv", HEADER, f"0,9,1.0,1.0,1.00,2.5,{family},{LENGTHS}")

    arrivals = [request.arrival_s for request in read_workload(path, seed=2).requests]

    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    assert pvariance(gaps) ** 0.5 / mean(gaps) == pytest.approx(2.5, rel=0.1)


def test_a_client_is_active_in_as_many_windows_as_published(write: Write) -> None:
    # 3 of 36 windows; the mean over the slot stays.
    path = write("clients.csv", HEADER, f"0,9,0.5,6.0,0.08,1.0,Gamma,{LENGTHS}")

    requests = read_workload(path, seed=5).requests

    windows = Counter(int(request.arrival_s // 600) for request in requests)
    # Time begins with the first request, so that each window may show up as two.
    assert len(windows) <= 6
    assert len(requests) == pytest.approx(0.5 * 21_600, rel=0.1)


def test_slots_of_a_client_follow_one_another(write: Write) -> None:
    path = write(
        "clients.csv",
        HEADER,
        f"0,9,0.1,1.0,1.00,1.0,Gamma,{LENGTHS}",
        f"0,4,0.1,1.0,1.00,1.0,Gamma,{LENGTHS}",
        f"43200,9,0.3,1.0,1.00,1.0,Gamma,{LENGTHS}",
    )

    requests = read_workload(path).requests

    assert [r.arrival_s for r in requests] == sorted(r.arrival_s for r in requests)
    late = [request for request in requests if request.arrival_s > 43_000]
    assert {request.tenant for request in late} == {"9"}
    assert len(late) == pytest.approx(0.3 * 21_600, rel=0.1)


def test_what_a_client_draws_depends_on_no_other_client(write: Write) -> None:
    one = f"0,9,0.1,1.0,1.00,1.0,Gamma,{LENGTHS}"
    other = f"0,4,0.1,1.0,1.00,1.0,Gamma,{LENGTHS}"
    alone = read_workload(write("one.csv", HEADER, one))
    both = read_workload(write("both.csv", HEADER, other, one))

    lengths = [(r.num_prompt_tokens, r.num_output_tokens) for r in alone.requests]
    assert lengths == [
        (r.num_prompt_tokens, r.num_output_tokens) for r in both.requests if r.tenant == "9"
    ]


def test_a_wanted_rate_thins_all_clients_alike(write: Write) -> None:
    path = write(
        "clients.csv",
        HEADER,
        f"0,9,30.0,60.0,1.00,1.0,Gamma,{LENGTHS}",
        f"0,4,10.0,60.0,1.00,1.0,Gamma,{LENGTHS}",
    )

    workload = read_workload(path, rate_rps=0.5)

    assert workload.mean_rps == pytest.approx(0.5, rel=0.05)
    tenants = Counter(request.tenant for request in workload.requests)
    assert tenants["9"] / tenants["4"] == pytest.approx(3, rel=0.1)
    assert workload.notes[0].count("rates times 0.0125") == 1


def test_clients_without_lengths_are_left_out_and_that_is_noted(write: Write) -> None:
    path = write(
        "clients.csv",
        HEADER,
        "0,15,3.0,5.0,1.00,1.0,Gamma,,,,,,,,",
        f"0,4,1.0,5.0,1.00,1.0,Gamma,{LENGTHS}",
    )

    workload = read_workload(path, max_requests=20)

    assert {request.tenant for request in workload.requests} == {"4"}
    assert workload.notes[0] == (
        "Clients without published lengths were left out: 75% of the rate."
    )


def test_a_table_without_any_lengths_is_refused(write: Write) -> None:
    with pytest.raises(TraceEmpty, match="no client with a rate and lengths"):
        read_workload(write("c.csv", HEADER, "0,15,3.0,5.0,1.00,1.0,Gamma,,,,,,,,"))
    with pytest.raises(TraceEmpty, match="no client with a rate and lengths"):
        read_workload(write("c.csv", HEADER))


def test_a_draw_too_large_for_memory_needs_a_bound(write: Write) -> None:
    path = write("c.csv", HEADER, f"0,9,1.0,1.0,1.00,1.0,Gamma,{LENGTHS}")
    limits = HeldLimits(max_requests=1000)

    with open_trace(path) as source:
        lines = iter(source)
        table = CsvTable(source, next(lines), lines)
        with pytest.raises(TraceTooLarge, match="about 21,600 requests"):
            read_clients(table, ReadOptions(limits=limits))
    assert len(read_workload(path, max_requests=50).requests) == 50


@pytest.mark.parametrize(
    ("row", "field", "expected"),
    [
        (f"0,9,-1,1,1,1,Gamma,{LENGTHS}", "mean_rps", "a number from 0 to 1e+06"),
        (f"0,9,1,1,1.5,1,Gamma,{LENGTHS}", "active_fraction", "a number from 0 to 1"),
        (f"0,9,1,1,1,nan,Gamma,{LENGTHS}", "iat_cv_median", "a number from 0 to 100"),
        (f"0,9,1,1,1,1,Pareto,{LENGTHS}", "iat_family", "Gamma or Weibull"),
        ("0,9,1,1,1,1,Gamma,9,5,4,9,9,5,6,7", "in_p90", "a number from 5 to 1e+07"),
        ("0,9,1,1,1,1,Gamma,9,5,6,7,,,,", "out_mean", "a number from 0 to 1e+07"),
        (
            f"600,8,1,1,1,1,Gamma,{LENGTHS}",
            "slot_start_s",
            "21600 or more, behind the client's slot before",
        ),
    ],
)
def test_a_bad_field_is_named(write: Write, row: str, field: str, expected: str) -> None:
    path = write("c.csv", HEADER, f"0,8,1,1,1,1,Gamma,{LENGTHS}", row)

    with pytest.raises(TraceFieldInvalid) as raised:
        read_workload(path)

    error = raised.value
    assert (error.line, error.field, error.expected) == (3, field, expected)
