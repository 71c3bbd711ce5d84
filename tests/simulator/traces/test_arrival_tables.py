"""Tables of requests, with and without arrival times."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from simulator.traces.errors import TraceOptionInvalid, TraceRateMissing
from simulator.traces.reading import read_workload
from simulator.traces.workload import TraceRequest

HEADER = "arrival_s,prompt_tokens,output_tokens"
Write = Callable[..., Path]


def test_a_table_of_requests_is_read_as_it_stands(write: Write) -> None:
    workload = read_workload(write("a.csv", HEADER, "0.000000,374,44", "4.5,396,109"))

    assert workload.name == "a"
    assert workload.requests == (TraceRequest(0.0, 374, 44), TraceRequest(4.5, 396, 109))
    assert workload.notes == ()
    assert not workload.is_closed


def test_tenant_and_session_are_optional_columns_in_any_order(write: Write) -> None:
    path = write("a.csv", f"session,{HEADER},tenant", "s1,0,1,2,gold", ",1,3,4,")

    first, second = read_workload(path).requests

    assert (first.session, first.tenant) == ("s1", "gold")
    assert (second.session, second.tenant) == ("", "default")


def test_a_client_is_a_tenant(write: Write) -> None:
    path = write("draw.csv.gz", f"{HEADER},client", "0.3256,1432,182,137", "0.9658,826,506,61")

    assert [request.tenant for request in read_workload(path).requests] == ["137", "61"]


def test_the_first_request_arrives_at_zero(write: Write) -> None:
    path = write("a.csv", HEADER, "1700000000.5,1,1", "1700000002,1,1")

    assert [request.arrival_s for request in read_workload(path).requests] == [0.0, 1.5]


def test_rows_out_of_order_are_sorted_and_that_is_noted(write: Write) -> None:
    path = write("a.csv", HEADER, "5,1,1", "3,2,2", "3,3,3", "9,4,4")

    workload = read_workload(path)

    assert [request.num_prompt_tokens for request in workload.requests] == [2, 3, 1, 4]
    assert [request.arrival_s for request in workload.requests] == [0.0, 0.0, 2.0, 6.0]
    assert workload.notes == (
        "The file is not in order of arrival (1 rows come after a later one); the rows were "
        "sorted.",
    )


def test_an_answer_without_tokens_is_given_one_and_that_is_noted(write: Write) -> None:
    workload = read_workload(write("a.csv", HEADER, "0,5,0", "1,5,7"))

    assert [request.num_output_tokens for request in workload.requests] == [1, 7]
    assert workload.notes == (
        "1 requests with 0 output tokens were given 1: every answer has a token.",
    )


def test_other_columns_are_noted_and_not_read(write: Write) -> None:
    workload = read_workload(write("a.csv", f"{HEADER},colour", "0,5,6,red"))

    assert workload.notes == ("Columns that were not read: colour.",)


def test_rate_scale_divides_arrivals(write: Write) -> None:
    path = write("a.csv", HEADER, "2,1,1", "6,1,1")

    workload = read_workload(path, rate_scale=4)

    assert [request.arrival_s for request in workload.requests] == [0.0, 1.0]
    assert workload.notes == ("All times were divided by 4 (rate_scale).",)


def test_recorded_arrivals_are_stretched_to_a_wanted_rate(write: Write) -> None:
    path = write("a.csv", HEADER, "0,1,1", "1,1,1", "4,1,1")

    workload = read_workload(path, rate_rps=3)

    assert workload.mean_rps == pytest.approx(3)
    assert [request.arrival_s for request in workload.requests] == [0.0, 0.25, 1.0]
    assert read_workload(path, rate_rps=3, rate_scale=2).mean_rps == pytest.approx(6)


def test_no_rate_can_be_given_to_requests_that_all_arrive_at_once(write: Write) -> None:
    path = write("a.csv", HEADER, "7,1,1", "7,1,1")

    assert read_workload(path).mean_rps is None
    with pytest.raises(TraceOptionInvalid, match="all requests of the file arrive at once"):
        read_workload(path, rate_rps=1)


def test_only_the_first_rows_are_read_if_so_many_are_wanted(write: Write) -> None:
    path = write("a.csv", HEADER, "0,1,1", "1,2,2", "what nobody reads")

    requests = read_workload(path, max_requests=2).requests

    assert [request.num_prompt_tokens for request in requests] == [1, 2]


def test_lengths_arrive_by_a_poisson_process_of_the_given_rate(write: Write) -> None:
    path = write("l.csv.gz", "prompt_tokens,output_tokens", *["156,67"] * 4000)

    workload = read_workload(path, rate_rps=5, seed=1)

    assert workload.mean_rps == pytest.approx(5, rel=0.05)
    arrivals = [request.arrival_s for request in workload.requests]
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance / mean**2 == pytest.approx(1, rel=0.1)
    assert workload.notes == ("Arrivals were drawn: Poisson at 5 requests per second, seed 1.",)


def test_a_table_of_lengths_needs_a_rate(write: Write) -> None:
    path = write("l.csv", "prompt_tokens,output_tokens", "156,67")

    with pytest.raises(TraceRateMissing) as raised:
        read_workload(path)

    assert raised.value.message == (
        f"{path}: a table of lengths, without arrival times; give rate_rps (--rate), how many "
        "requests per second are to arrive"
    )
