"""Recorded conversations: order, pauses, names of blocks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulator.traces.conversations import read_conversations
from simulator.traces.errors import TraceFieldInvalid, TraceRateMissing, TraceTooLarge
from simulator.traces.json_lines import objects
from simulator.traces.lines import open_trace
from simulator.traces.options import HeldLimits, ReadOptions
from simulator.traces.reading import read_workload

Write = Callable[..., Path]


def turn(
    conversation: int, number: int, t: float, think_s: float | None = 4.0, **others: Any
) -> str:
    fields = {
        "conversation": conversation,
        "turn": number,
        "t": t,
        "branch": 0,
        "input_length": 200,
        "output_length": 9,
        "model": "m0",
        "think_s": think_s,
        "service_s": 1.0,
        "hash_runs": [[1, 2]],
    }
    return json.dumps(fields | others)


def test_later_requests_wait_for_the_answer_before_and_the_pause(write: Write) -> None:
    path = write("c.jsonl.gz", turn(7, 0, 0, 0.0), turn(7, 1, 32, 12.0), turn(7, 2, 53, 10.0))

    workload = read_workload(path)

    assert workload.is_closed
    assert [request.after_previous_s for request in workload.requests] == [None, 12.0, 10.0]
    # What the recording says of the time in between is only an estimate.
    assert [request.arrival_s for request in workload.requests] == [0.0, 32.0, 53.0]
    assert {request.session for request in workload.requests} == {"7"}
    assert {request.tenant for request in workload.requests} == {"m0"}


def test_conversations_begin_one_by_one_and_keep_their_order(write: Write) -> None:
    lines = [turn(number, k, 10.0 * k) for number in range(200) for k in range(5)]

    workload = read_workload(write("c.jsonl", *lines), rate_rps=20, seed=3)

    starts = [r.arrival_s for r in workload.requests if r.after_previous_s is None]
    # 20 requests in a second are 4 conversations of 5.
    assert len(starts) / (starts[-1] - starts[0]) == pytest.approx(4, rel=0.2)
    for number in range(200):
        turns = [r for r in workload.requests if r.session == str(number)]
        assert [r.arrival_s - turns[0].arrival_s for r in turns] == pytest.approx(
            [0, 10, 20, 30, 40]
        )
    assert "seed 3" in workload.notes[0]


def test_without_a_rate_conversations_begin_as_they_end_in_the_recording(write: Write) -> None:
    lines = [turn(number, k, 50.0 * k) for number in range(500) for k in range(3)]

    starts = [
        request.arrival_s
        for request in read_workload(write("c.jsonl", *lines)).requests
        if request.after_previous_s is None
    ]

    # 500 under way, each for 100 seconds.
    assert len(starts) / starts[-1] == pytest.approx(5, rel=0.15)


def test_conversations_of_one_request_need_a_rate(write: Write) -> None:
    path = write("c.jsonl", turn(0, 0, 0), turn(1, 0, 0))

    with pytest.raises(TraceRateMissing, match="conversations of one request each"):
        read_workload(path)
    assert len(read_workload(path, rate_rps=1).requests) == 2


def test_rate_scale_divides_pauses_as_well(write: Write) -> None:
    path = write("c.jsonl", turn(0, 0, 0), turn(0, 1, 32, 12.0))

    second = read_workload(path, rate_scale=4).requests[1]

    assert (second.arrival_s, second.after_previous_s) == (8.0, 3.0)


def test_the_first_requests_to_arrive_are_taken_from_all_conversations(write: Write) -> None:
    lines = [turn(number, k, 1000.0 * k) for number in range(10) for k in range(10)]

    requests = read_workload(write("c.jsonl", *lines), max_requests=10, rate_rps=1000).requests

    assert len({request.session for request in requests}) == 10
    assert all(request.after_previous_s is None for request in requests)


def test_a_pause_that_is_not_recorded_is_the_time_since_the_request_before(write: Write) -> None:
    later = json.loads(turn(0, 1, 32))
    del later["think_s"]

    workload = read_workload(write("c.jsonl", turn(0, 0, 2), json.dumps(later)))

    assert workload.requests[1].after_previous_s == 30.0
    assert workload.notes[1] == (
        "1 requests have no recorded pause; all the time since the request before was taken."
    )


def test_runs_name_blocks_that_no_other_conversation_has(write: Write) -> None:
    path = write(
        "c.jsonl",
        turn(0, 0, 0, hash_runs=[[1, 3]]),
        turn(0, 1, 9, hash_runs=[[1, 2], [8, 1]]),
        turn(1, 0, 0, hash_runs=[[1, 3]]),
    )

    by_turn = {
        (request.session, request.after_previous_s is None): request.prefix_ids
        for request in read_workload(path, rate_rps=1).requests
    }
    first, second, other = by_turn["0", True], by_turn["0", False], by_turn["1", True]

    assert [len(first), len(second), len(other)] == [3, 3, 3]
    assert second[:2] == first[:2]
    assert second[2] not in first
    assert set(other).isdisjoint(first + second)


def test_blocks_without_a_number_are_unknown(write: Write) -> None:
    request = read_workload(write("c.jsonl", turn(0, 0, 0, hash_runs=[])), rate_rps=1).requests[0]

    assert (request.prefix_ids, request.prefix_block_tokens) == ((), 0)


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        (turn(0, 3, 50), "turn", "more than 3, the turn before in conversation 0"),
        (turn(0, 4, 29), "t", "30 or more, as in the turn before in conversation 0"),
        (turn(0, 4, 50, -1), "think_s", "a number from 0 to 1e+11"),
        (turn(0, 4, 50, None), "think_s", "a number from 0 to 1e+11"),
        (turn(0, 4, 50, model=5), "model", "a text of at most 200 characters"),
        (turn(0, 4, 50, hash_runs=[[1, 4]]), "hash_runs", "a whole number from 0 to 3"),
        (
            turn(0, 4, 50, hash_runs=[[1, 2], [9, 2]]),
            "hash_runs",
            "at most 3 blocks, as many as input_length has in full",
        ),
        (
            turn(0, 4, 50, hash_runs=[[1, 2, 3]]),
            "hash_runs",
            "pairs of a first block number and a count",
        ),
        (turn(0, 4, 50, hash_runs=[[10**12, 1]]), "hash_runs", "a whole number from 0 to 4194303"),
    ],
)
def test_a_bad_turn_is_named_with_its_line(
    write: Write, line: str, field: str, expected: str
) -> None:
    path = write("c.jsonl", turn(0, 0, 0), turn(0, 3, 30), line)

    with pytest.raises(TraceFieldInvalid) as raised:
        read_workload(path)

    error = raised.value
    assert (error.line, error.field, error.expected) == (3, field, expected)


@pytest.mark.parametrize("limits", [HeldLimits(max_requests=2), HeldLimits(max_prefix_ids=8)])
def test_more_than_fits_into_memory_is_refused(write: Write, limits: HeldLimits) -> None:
    path = write("c.jsonl", *(turn(0, k, k) for k in range(3)))

    with open_trace(path) as source:
        lines = iter(source)
        turns = objects(source, next(lines), lines)
        with pytest.raises(TraceTooLarge, match="split the file"):
            read_conversations(source, turns, ReadOptions(limits=limits))
