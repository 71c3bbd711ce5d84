"""Sampling parameters and logprobs of prompts travel unchanged; what could harm is refused."""

import math
from array import array
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.wire import (
    ProtocolError,
    ReportBatch,
    decode_request,
    decode_response,
    encode_commands,
    encode_reports,
)
from scheduling.ids import TaskId
from scheduling.messages import (
    PromptScored,
    Report,
    SequenceSpec,
    StartPrefill,
    TokensEmitted,
    WorkerLoad,
)
from scheduling.sampling import PromptLogprobs, SamplingParams, StopParams
from tandemserve.internal.v1 import sequence_pb2
from tandemserve.internal.v1 import worker_pb2 as pb

TASK = TaskId("a/0")
LOAD = WorkerLoad(1, 2, 3, 4)
counts = st.integers(0, 2**31 - 1)
float32s = st.floats(allow_nan=False, allow_infinity=False, width=32)
samplings = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2, width=32),
    top_k=counts,
    top_p=st.floats(0, 1, width=32, exclude_min=True),
    seed=st.integers(0, 2**64 - 1),
    num_logprobs=st.none() | st.integers(0, 20),
    min_p=st.floats(0, 1, width=32),
    repetition_penalty=st.floats(0, 2.0**100, width=32, exclude_min=True),
    presence_penalty=float32s,
    frequency_penalty=float32s,
    logit_bias=st.dictionaries(counts, float32s, max_size=4).map(lambda d: tuple(d.items())),
    min_tokens=counts,
    num_prompt_logprobs=st.none() | st.integers(0, 20),
)


def arrived(sequence: SequenceSpec) -> SequenceSpec:
    sent = encode_commands([StartPrefill(TASK, sequence)]).SerializeToString()
    decoded = decode_request(pb.SessionRequest.FromString(sent))
    assert isinstance(decoded, tuple)
    (command,) = decoded
    assert isinstance(command, StartPrefill)
    return command.sequence


@given(sampling=samplings, ends=st.lists(counts, max_size=3).map(tuple))
def test_a_sequence_is_sampled_as_the_router_says(
    sampling: SamplingParams, ends: tuple[int, ...]
) -> None:
    # What may not be drawn early is what ends the answer; it travels once.
    sampling = replace(sampling, end_token_ids=ends if sampling.min_tokens else ())
    sequence = SequenceSpec((1,), (2,), sampling, StopParams(5, ends))
    assert arrived(sequence) == sequence


@given(
    tpot_s=st.just(math.inf) | st.floats(1e-4, 1e6), tbt_s=st.just(math.inf) | st.floats(1e-4, 1e6)
)
def test_goals_for_gaps_travel_or_are_absent(tpot_s: float, tbt_s: float) -> None:
    sequence = SequenceSpec((1,), (), SamplingParams(), StopParams(5), tpot_s=tpot_s, tbt_s=tbt_s)
    assert arrived(sequence) == sequence


def test_what_is_not_asked_for_takes_no_room() -> None:
    plain = SequenceSpec((1,), (), SamplingParams(temperature=0.5), StopParams(5))
    assert arrived(plain) == plain
    predicted = replace(plain, num_predicted_tokens=3)
    assert arrived(predicted) == predicted
    sent = encode_commands([StartPrefill(TASK, plain)])
    names = {
        field.name for field, _ in sent.commands.commands[0].start_prefill.sequence.ListFields()
    }
    # What changes nothing is not sent: an older worker reads the same.
    assert names == {"prompt_token_ids", "temperature", "top_p", "max_tokens"}


@st.composite
def prompt_logprobs(draw: st.DrawFn) -> PromptLogprobs:
    num_tokens, num_top = draw(st.integers(1, 5)), draw(st.integers(0, 3))
    num_entries = num_tokens * num_top
    return PromptLogprobs(
        first_token_index=draw(st.integers(1, 1000)),
        logprobs=array("f", draw(st.lists(float32s, min_size=num_tokens, max_size=num_tokens))),
        top_token_ids=array(
            "I", draw(st.lists(counts, min_size=num_entries, max_size=num_entries))
        ),
        top_logprobs=array(
            "f", draw(st.lists(float32s, min_size=num_entries, max_size=num_entries))
        ),
    )


@given(prompt_logprobs(), prompt_logprobs())
def test_logprobs_of_a_prompt_arrive_in_order_and_before_its_first_token(
    first: PromptLogprobs, second: PromptLogprobs
) -> None:
    token = TokensEmitted(TASK, 0, (1,), "x")
    reports: list[Report] = [PromptScored(TASK, first), PromptScored(TASK, second), token]
    found: list[object] = []
    for message in encode_reports(reports, LOAD):
        batch = decode_response(pb.SessionResponse.FromString(message.SerializeToString()))
        assert isinstance(batch, ReportBatch)
        found += batch.reports
    assert found == reports


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("num_prompt_logprobs", {"num_prompt_logprobs": 21}),
        ("min_p", {"min_p": 1.5}),
        ("min_p", {"min_p": math.nan}),
        ("repetition_penalty", {"repetition_penalty": 0}),
        ("repetition_penalty", {"repetition_penalty": math.inf}),
        ("presence_penalty", {"presence_penalty": math.nan}),
        ("frequency_penalty", {"frequency_penalty": -math.inf}),
        ("biases", {"bias_token_ids": [1, 2], "biases": [0.5]}),
        ("biases", {"bias_token_ids": [1], "biases": [math.inf]}),
        ("bias_token_ids", {"bias_token_ids": [1, 1], "biases": [1, 2]}),
        ("bias_token_ids", {"bias_token_ids": range(1025), "biases": [1] * 1025}),
        ("bias_token_ids", {"bias_token_ids": [2**31], "biases": [1]}),
        ("min_tokens", {"min_tokens": 2**31}),
    ],
)
def test_what_no_router_of_this_version_sends_is_refused(
    field: str, changes: dict[str, Any]
) -> None:
    fields: dict[str, Any] = {"prompt_token_ids": [1], "temperature": 1.0, "top_p": 1.0}
    sequence = sequence_pb2.SequenceSpec(**(fields | {"max_tokens": 1} | changes))
    prefill = pb.StartPrefill(sequence=sequence)
    command = pb.Command(task_id=TASK, start_prefill=prefill)
    with pytest.raises(ProtocolError) as caught:
        decode_request(pb.SessionRequest(commands=pb.CommandFrame(commands=[command])))
    assert field in caught.value.field


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("first_token_index", {"first_token_index": 0}),
        ("first_token_index", {"first_token_index": 2**31 - 1}),
        ("logprobs", {"logprobs": []}),
        ("logprobs", {"logprobs": [math.nan]}),
        ("logprobs", {"top_token_ids": [1], "top_logprobs": [-math.inf]}),
        ("top_logprobs", {"top_token_ids": [1]}),
        ("top_token_ids", {"logprobs": [-1, -1], "top_token_ids": [1], "top_logprobs": [-1]}),
        ("top_token_ids", {"top_token_ids": range(21), "top_logprobs": [-1] * 21}),
    ],
)
def test_logprobs_that_no_worker_of_this_version_sends_are_refused(
    field: str, changes: dict[str, Any]
) -> None:
    fields: dict[str, Any] = {"first_token_index": 1, "logprobs": [-1]} | changes
    report = pb.Report(task_id=TASK, prompt_logprobs=pb.PromptLogprobs(**fields))
    frame = pb.ReportFrame(load=pb.WorkerLoad(), reports=[report])
    with pytest.raises(ProtocolError) as caught:
        decode_response(pb.SessionResponse(reports=frame))
    assert field in caught.value.field
