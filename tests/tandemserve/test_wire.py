"""Results mirror the wire contract: a field added to one side is missed on the other."""

from dataclasses import fields
from typing import Any

import pytest

from tandemserve import GenerateOptions, InvalidRequest, admin_results, results, wire
from tandemserve.api.v1 import admin_pb2, inference_pb2


@pytest.mark.parametrize(
    ("result_class", "message"),
    [
        (results.Accepted, inference_pb2.RequestAccepted),
        (results.Delta, inference_pb2.Delta),
        (results.TokenLogprobs, inference_pb2.TokenLogprobs),
        (results.PromptLogprobs, inference_pb2.PromptLogprobs),
        (results.TopLogprob, inference_pb2.TopLogprob),
        (results.Usage, inference_pb2.Usage),
        (results.Timings, inference_pb2.Timings),
        (results.ModelInfo, inference_pb2.GetModelInfoResponse),
        (admin_results.ClusterStatus, admin_pb2.GetStatusResponse),
        (admin_results.WorkerView, admin_pb2.WorkerView),
        (admin_results.QueuedTask, admin_pb2.QueuedTask),
        (admin_results.Queues, admin_pb2.ListQueuesResponse),
        (admin_results.WorkerReservations, admin_pb2.WorkerReservations),
        (admin_results.Holding, admin_pb2.Holding),
        (admin_results.Reservations, admin_pb2.ListReservationsResponse),
    ],
)
def test_results_have_the_fields_of_their_messages(result_class: Any, message: Any) -> None:
    names = [field.name for field in fields(result_class)]
    assert names == [field.name for field in message.DESCRIPTOR.fields]


def test_every_field_of_a_request_can_be_set_by_an_option() -> None:
    options = set(GenerateOptions.__annotations__)
    renamed = {
        "text", "chat", "tokens",  # the prompt
        "resume",  # made by the client itself, when a stream broke
        "joins_events",  # what the client can read
        "sampling", "service_level",  # their fields are checked below
        "num_prompt_logprobs", "num_logprobs", "token_ids", "strings",  # ..., stop_token_ids, stop
    }  # fmt: skip
    for message in (
        inference_pb2.GenerateRequest,
        inference_pb2.SamplingParams,
        inference_pb2.StopConditions,
        inference_pb2.ServiceLevel,
    ):
        names = {field.name for field in message.DESCRIPTOR.fields}
        assert names - renamed <= options


def test_logprobs_and_a_matched_token_are_read() -> None:
    response = inference_pb2.GenerateResponse(
        delta=inference_pb2.Delta(
            token_ids=[1],
            logprobs=[
                inference_pb2.TokenLogprobs(
                    logprob=-0.5, top=[inference_pb2.TopLogprob(token_id=1, logprob=-0.5, text="a")]
                )
            ],
        )
    )
    top = results.TopLogprob(token_id=1, logprob=-0.5, text="a")
    event = wire.event_from(response)
    assert isinstance(event, results.Delta)
    assert event.logprobs == (results.TokenLogprobs(-0.5, (top,)),)
    ended = inference_pb2.ChoiceFinished(
        matched_token_id=2,
        finish_reason=99,  # type: ignore[arg-type]
        timings=inference_pb2.Timings(tpot_ms=1.5),
    )
    finished = wire.event_from(inference_pb2.GenerateResponse(finished=ended))
    assert isinstance(finished, results.Finished)
    assert finished.matched_stop == 2
    assert finished.finish_reason is results.FinishReason.OTHER
    assert finished.timings.tpot_ms == 1.5


def test_logprobs_of_a_prompt_are_read() -> None:
    top = inference_pb2.TopLogprob(token_id=1, logprob=-0.5, text="a")
    message = inference_pb2.PromptLogprobs(
        first_token_index=4, logprobs=[inference_pb2.TokenLogprobs(logprob=-2, top=[top])]
    )
    event = wire.event_from(inference_pb2.GenerateResponse(prompt_logprobs=message))
    entry = results.TokenLogprobs(-2.0, (results.TopLogprob(1, -0.5, "a"),))
    assert event == results.PromptLogprobs(4, (entry,))


def test_biases_are_a_mapping_of_token_ids_to_numbers() -> None:
    request = wire.generate_request({"logit_bias": {5: -1, 7: 2.5}}, new_request_id="r")
    assert dict(request.sampling.logit_bias) == {5: -1.0, 7: 2.5}
    empty = wire.generate_request({"logit_bias": None}, new_request_id="r")
    assert not empty.sampling.logit_bias
    with pytest.raises(InvalidRequest, match="logit_bias: -1 is outside"):
        wire.generate_request({"logit_bias": {-1: 1.0}}, new_request_id="r")
    bad: list[Any] = [[(5, 1.0)], "5:1", {"5": 1.0}, {5: "much"}, {5: True}]
    for biases in bad:
        with pytest.raises(TypeError, match="logit_bias must be"):
            wire.generate_request({"logit_bias": biases}, new_request_id="r")


def test_no_answers_at_all_are_refused_and_not_taken_for_one() -> None:
    with pytest.raises(InvalidRequest, match="n: 0 answers; ask for at least 1"):
        wire.generate_request({"n": 0}, new_request_id="r")


def test_a_prompt_may_be_any_iterable_of_integers() -> None:
    request = inference_pb2.GenerateRequest()
    wire.set_prompt(request, iter(range(3)))
    assert list(request.tokens.ids) == [0, 1, 2]


def test_a_message_with_other_keys_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="exactly a role and a content"):
        wire.chat_prompt([{"role": "user", "text": "hi"}])
    with pytest.raises(TypeError, match=r"messages.content must be a string"):
        wire.chat_prompt([{"role": "user", "content": 3}])  # type: ignore[dict-item]
