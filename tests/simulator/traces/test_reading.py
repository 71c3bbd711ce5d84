"""Formats are told apart by content, and reading again gives the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from simulator.traces.reading import read_workload

Write = Callable[..., Path]
CONVERSATION = [
    json.dumps(
        {
            "conversation": 0,
            "turn": k,
            "t": 9.0 * k,
            "think_s": 3.0,
            "input_length": 300,
            "output_length": 5,
            "hash_runs": [[0, 4]],
        }
    )
    for k in range(4)
]
FORMATS = {
    "requests": ["arrival_s,prompt_tokens,output_tokens", "0,1,2", "1,3,4", "7,5,6", "8,7,8"],
    "lengths": ["prompt_tokens,output_tokens", "1,2", "3,4", "5,6", "7,8"],
    "mooncake": ['{"timestamp": 0, "input_length": 1, "output_length": 1}'] * 3
    + ['{"timestamp": 3000, "input_length": 1, "output_length": 1}'],
    "conversations": CONVERSATION,
    "clients": [
        "slot_start_s,client,mean_rps,peak_rps,active_fraction,iat_cv_median,iat_family,"
        "in_mean,in_p50,in_p90,in_p99,out_mean,out_p50,out_p90,out_p99",
        "0,0,1,2,1,1,Gamma,10,10,20,30,10,10,20,30",
    ],
}


@pytest.mark.parametrize("known", FORMATS)
def test_neither_the_name_nor_compression_matters(write: Write, known: str) -> None:
    workloads = [
        read_workload(write(name, *FORMATS[known]), rate_rps=2, max_requests=4)
        for name in ("trace", "trace.csv", "trace.jsonl", "trace.csv.gz", "trace.jsonl.gz")
    ]

    assert len(workloads[0].requests) == 4
    assert all(workload == workloads[0] for workload in workloads)


@pytest.mark.parametrize("known", FORMATS)
def test_the_same_seed_gives_the_same_workload_and_another_seed_another(
    write: Write, known: str
) -> None:
    path = write("trace", *FORMATS[known])

    def read(seed: int) -> object:
        return read_workload(path, rate_rps=2, max_requests=4, seed=seed).requests

    assert read(1) == read(1)
    drawn = known not in {"requests", "conversations"}
    assert (read(1) != read(2)) == drawn


@pytest.mark.parametrize("known", FORMATS)
def test_arrivals_ascend_from_zero(write: Write, known: str) -> None:
    workload = read_workload(write("trace", *FORMATS[known]), rate_rps=2, max_requests=4)

    arrivals = [request.arrival_s for request in workload.requests]
    assert arrivals[0] == 0.0
    assert arrivals == sorted(arrivals)
    assert workload.span_s == arrivals[-1]
