"""Mooncake's and RAGPulse's JSON lines."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulator.traces.errors import TraceFieldInvalid
from simulator.traces.reading import read_workload

Write = Callable[..., Path]


def mooncake(timestamp: float, num_prompt: int = 600, **others: Any) -> str:
    fields = {"timestamp": timestamp, "input_length": num_prompt, "output_length": 5}
    return json.dumps(fields | others)


def rag(ids: list[int], sizes: list[int], num_prompt: int = 100, **others: Any) -> str:
    fields = {
        "timestamp": 0,
        "input_length": num_prompt,
        "output_length": 5,
        "conversation": 3,
        "hash_ids": ids,
        "block_tokens": sizes,
        "kinds": "s" * len(ids),
    }
    return json.dumps(fields | others)


def test_ids_of_mooncake_name_512_tokens_each_and_the_last_may_be_partial(write: Write) -> None:
    path = write("m.jsonl.gz", mooncake(0, 600, hash_ids=[0, 7]), mooncake(1500))

    with_ids, without_ids = read_workload(path).requests

    assert (with_ids.prefix_ids, with_ids.prefix_block_tokens) == ((0, 7), 512)
    assert (without_ids.prefix_ids, without_ids.prefix_block_tokens) == ((), 0)
    assert (with_ids.num_prompt_tokens, with_ids.num_output_tokens) == (600, 5)
    assert without_ids.arrival_s == 1.5


def test_requests_of_a_coarse_clock_are_spread_over_its_steps(write: Write) -> None:
    stamps = [step * 3000 for step in range(50) for _ in range(20)]
    path = write("m.jsonl", *map(mooncake, stamps))

    workload = read_workload(path, seed=4)

    arrivals = [request.arrival_s for request in workload.requests]
    assert arrivals == sorted(arrivals)
    assert len(set(arrivals)) == 1000
    # The first request is moved by less than one step, and time begins with it.
    per_step = Counter(int(arrival // 3) for arrival in arrivals)
    assert len(per_step) == 50
    per_half_second = Counter(int(arrival * 2) for arrival in arrivals)
    assert max(per_half_second.values()) < 14
    assert "Timestamps are rounded to about 3 s" in workload.notes[0]


def test_the_seed_alone_says_where_in_its_step_a_request_lies(write: Write) -> None:
    path = write("m.jsonl", *map(mooncake, [0, 0, 0, 3000, 3000, 3000]))

    assert read_workload(path, seed=1) == read_workload(path, seed=1)
    assert read_workload(path, seed=1) != read_workload(path, seed=2)


def test_a_fine_clock_is_believed(write: Write) -> None:
    path = write("m.jsonl", *map(mooncake, [0, 10, 10, 25, 31]))

    workload = read_workload(path)

    arrivals = [request.arrival_s for request in workload.requests]
    assert arrivals == [0.0, 0.01, 0.01, 0.025, 0.031]
    assert workload.notes == ()


def test_rows_of_mooncake_out_of_order_are_sorted(write: Write) -> None:
    path = write("m.jsonl", mooncake(9, 1), mooncake(4, 2), mooncake(6, 3))

    requests = read_workload(path).requests

    assert [request.num_prompt_tokens for request in requests] == [2, 3, 1]


def test_blocks_of_any_size_become_pieces_of_one_size(write: Write) -> None:
    path = write(
        "r.jsonl",
        rag([1, 2, 3], [20, 10, 12]),
        rag([1, 2, 4], [20, 10, 12], timestamp=1),
        rag([2, 1], [10, 20], timestamp=2),
    )

    first, second, third = read_workload(path, prefix_block_tokens=8).requests

    assert first.session == "3"
    assert first.prefix_block_tokens == 8
    assert len(first.prefix_ids) == 42 // 8
    # 24 tokens lie in the two common blocks; the piece behind them reaches into the third block.
    assert second.prefix_ids[:3] == first.prefix_ids[:3]
    assert set(second.prefix_ids[3:]).isdisjoint(first.prefix_ids)
    # The same block at another place is another beginning.
    assert set(third.prefix_ids).isdisjoint(first.prefix_ids + second.prefix_ids)


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        (mooncake(-1), "timestamp", "a number from 0 to 1e+14"),
        (mooncake(float("nan")), "timestamp", "a number from 0 to 1e+14"),
        (mooncake(1e20), "timestamp", "a number from 0 to 1e+14"),
        (mooncake(True), "timestamp", "a number from 0 to 1e+14"),
        (mooncake(0, 0), "input_length", "a whole number from 1 to 10000000"),
        (mooncake(0, 10**9), "input_length", "a whole number from 1 to 10000000"),
        (mooncake(0, output_length=-1), "output_length", "a whole number from 0 to 10000000"),
        (mooncake(0, output_length=1.5), "output_length", "a whole number from 0 to 10000000"),
        (mooncake(0, output_length="5"), "output_length", "a whole number from 0 to 10000000"),
        (mooncake(0, hash_ids=5), "hash_ids", "a list"),
        (
            mooncake(0, hash_ids=[1, 2, 3]),
            "hash_ids",
            "at most 2 items, as many as the prompt has room for",
        ),
        (mooncake(0, hash_ids=[1, None]), "hash_ids", f"a whole number from 0 to {2**63 - 1}"),
        (mooncake(0, hash_ids=[1, -2]), "hash_ids", f"a whole number from 0 to {2**63 - 1}"),
        (mooncake(0, hash_ids=[2**63]), "hash_ids", f"a whole number from 0 to {2**63 - 1}"),
    ],
)
def test_a_bad_field_of_mooncake_is_named_with_its_line(
    write: Write, line: str, field: str, expected: str
) -> None:
    path = write("m.jsonl", mooncake(0), line)

    with pytest.raises(TraceFieldInvalid) as raised:
        read_workload(path)

    error = raised.value
    assert (error.path, error.line, error.field, error.expected) == (path, 2, field, expected)


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        (rag([1, 2], [5]), "block_tokens", "2 items, one for each of hash_ids"),
        (rag([1, 2], [5, 0]), "block_tokens", "a whole number from 1 to 10000000"),
        (rag([1], [101]), "block_tokens", "a sum of at most 100, the input_length"),
        (rag([1], [5], conversation=-1), "conversation", f"a whole number from 0 to {2**63 - 1}"),
    ],
)
def test_a_bad_field_of_ragpulse_is_named(
    write: Write, line: str, field: str, expected: str
) -> None:
    with pytest.raises(TraceFieldInvalid) as raised:
        read_workload(write("r.jsonl", line))

    error = raised.value
    assert (error.line, error.field, error.expected) == (1, field, expected)


def test_a_missing_field_is_named(write: Write) -> None:
    path = write("m.jsonl", mooncake(0), '{"timestamp": 3, "input_length": 5}')

    with pytest.raises(TraceFieldInvalid) as raised:
        read_workload(path)

    assert raised.value.message == (
        f"{path}, line 2: output_length is missing; correct the line or leave it out"
    )
