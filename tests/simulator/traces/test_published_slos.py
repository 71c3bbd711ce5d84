"""The table of published SLOs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from simulator.traces.errors import TraceEmpty, TraceFieldInvalid, TraceFormatUnknown
from simulator.traces.published_slos import (
    AbsoluteLimit,
    PublishedSlo,
    SlowdownLimit,
    read_slos,
)

HEADER = (
    "source,model,workload,class,share,ttft_ms,per_token_ms,per_token_metric,attainment_rule,"
    "hardware,where"
)
Write = Callable[..., Path]


def test_a_row_is_read_with_its_limits_in_seconds(write: Write) -> None:
    path = write(
        "slos.csv", HEADER, 'm,Llama3-70B,"chat, code",tier 0,1/3,250,100,mean,90% meet both,A,p 5'
    )

    assert read_slos(path) == (
        PublishedSlo(
            source="m",
            model="Llama3-70B",
            workload="chat, code",
            service_class="tier 0",
            share=1 / 3,
            ttft=AbsoluteLimit(0.25),
            per_token=AbsoluteLimit(0.1),
            per_token_metric="mean",
            attainment_rule="90% meet both",
            hardware="A",
            where="p 5",
        ),
    )


def test_limits_may_be_slowdowns_or_missing(write: Write) -> None:
    path = write("slos.csv", HEADER, "s,m,w,p50,,2x,1.25x,,,,", "s,m,w,c,0.5,,,,,,")

    first, second = read_slos(path)

    assert (first.ttft, first.per_token) == (SlowdownLimit(2.0), SlowdownLimit(1.25))
    assert first.share is None
    assert (second.ttft, second.per_token, second.share) == (None, None, 0.5)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ("s,m,w,c,,fast,100,,,,", "ttft_ms"),
        ("s,m,w,c,,-250,100,,,,", "ttft_ms"),
        ("s,m,w,c,,x,100,,,,", "ttft_ms"),
        ("s,m,w,c,,250,nan,,,,", "per_token_ms"),
        ("s,m,w,c,,250,0x,,,,", "per_token_ms"),
        ("s,m,w,c,2,250,100,,,,", "share"),
        ("s,m,w,c,1/0,250,100,,,,", "share"),
        ("s,m,w,c,third,250,100,,,,", "share"),
    ],
)
def test_a_bad_field_is_named(write: Write, row: str, field: str) -> None:
    with pytest.raises(TraceFieldInvalid) as raised:
        read_slos(write("slos.csv", HEADER, row))

    assert (raised.value.line, raised.value.field) == (2, field)


def test_another_table_is_refused(write: Write) -> None:
    with pytest.raises(TraceFormatUnknown, match="a table of SLOs lacks the columns source, model"):
        read_slos(write("a.csv", "arrival_s,prompt_tokens,output_tokens", "0,1,2"))


def test_a_table_without_rows_is_refused(write: Write) -> None:
    with pytest.raises(TraceEmpty, match="no row below the header"):
        read_slos(write("slos.csv", HEADER))
    with pytest.raises(TraceEmpty, match="the file is empty"):
        read_slos(write("empty.csv"))
