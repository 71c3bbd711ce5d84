"""What callers send is checked by field; what they get keeps order and saves messages."""

from array import array
from typing import Any

import pytest

from router.events import EmitFinished, EmitPromptLogprobs, EmitTokens, PhaseTimings
from router.stream_log import Emission
from router.streams import AcceptedInfo
from router.wire.generate import emissions_to_proto, generate_call
from router.wire.sampling import SamplingWishes, StopWishes
from scheduling.errors import InvalidRequest
from scheduling.ids import RequestId, TaskId
from scheduling.messages import TokensEmitted
from scheduling.sampling import PromptLogprobs, TokenLogprobs
from tandemserve.api.v1 import inference_pb2 as pb
from tandemserve.wire import events_from

ID = RequestId("r")
TOKENS = TokensEmitted(TaskId("t"), 0, (1,), "x")
INFO = AcceptedInfo("model", 3, 5, "standard")
TIMINGS = PhaseTimings(0.1, 0, 0, 0, 0, 0.2, None, 0.3, 2, 64, "t", "p", "d", True, 1, 2)


MANY = dict.fromkeys(range(1025), 1.0)
NAN, INFINITY = float("nan"), float("inf")
# Besides these, the very limits are legal.
ILLEGAL = {
    "min_p": (-0.01, 1.01, NAN, INFINITY),
    "repetition_penalty": (0.0, -1.0, NAN, INFINITY),
    "presence_penalty": (-2.01, 2.01, NAN, -INFINITY),
    "frequency_penalty": (-2.01, 2.01, NAN, INFINITY),
}


def sampling_of(**fields: Any) -> pb.SamplingParams:
    return pb.SamplingParams(**fields)


def request_of(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(**({"text": "hello"} | fields))


def test_what_is_not_set_is_left_to_the_model() -> None:
    call = generate_call(request_of())
    sampling = call.sampling
    unset = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed)
    assert unset == (None, None, None, None)
    assert (call.stop.max_tokens, sampling.num_logprobs) == (None, None)
    assert (call.ttft_s, call.tpot_s, call.jct_s, call.tbt_s) == (None, None, None, None)
    assert (sampling, call.stop) == (SamplingWishes(), StopWishes())
    assert (call.num_choices, call.request_class, call.tenant) == (1, "standard", "default")


def test_goals_are_seconds_inside() -> None:
    level = pb.ServiceLevel(ttft_ms=250, tpot_ms=20.5, jct_ms=600_000, tbt_ms=150)
    call = generate_call(request_of(service_level=level))
    assert (call.ttft_s, call.tpot_s, call.jct_s, call.tbt_s) == (0.25, 0.0205, 600.0, 0.15)


def test_zero_is_a_value_where_it_means_something() -> None:
    sampling = pb.SamplingParams(temperature=0.0, seed=0, top_k=0)
    call = generate_call(request_of(sampling=sampling, num_logprobs=0))
    assert (call.sampling.temperature, call.sampling.seed, call.sampling.top_k) == (0.0, 0, 0)
    assert call.sampling.num_logprobs == 0


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("prompt", pb.GenerateRequest()),
        ("text", pb.GenerateRequest(text="")),
        ("tokens", pb.GenerateRequest(tokens=pb.TokenPrompt())),
        ("chat", pb.GenerateRequest(chat=pb.ChatPrompt())),
        ("request_id", request_of(request_id="a/b")),
        ("request_id", request_of(request_id="x" * 129)),
        ("tenant", request_of(tenant="a b")),
        ("session", request_of(session="\n")),
        ("request_class", request_of(request_class=99)),
        ("n", request_of(n=17)),
        ("num_logprobs", request_of(num_logprobs=21)),
        ("temperature", request_of(sampling=pb.SamplingParams(temperature=-0.1))),
        ("temperature", request_of(sampling=pb.SamplingParams(temperature=float("nan")))),
        ("temperature", request_of(sampling=pb.SamplingParams(temperature=float("inf")))),
        ("top_p", request_of(sampling=pb.SamplingParams(top_p=0.0))),
        ("top_p", request_of(sampling=pb.SamplingParams(top_p=1.1))),
        ("top_p", request_of(sampling=pb.SamplingParams(top_p=float("nan")))),
        *(
            (field, request_of(sampling=sampling_of(**{field: value})))
            for field, values in ILLEGAL.items()
            for value in values
        ),
        ("logit_bias", request_of(sampling=pb.SamplingParams(logit_bias={5: 100.5}))),
        ("logit_bias", request_of(sampling=pb.SamplingParams(logit_bias={5: float("nan")}))),
        ("logit_bias", request_of(sampling=pb.SamplingParams(logit_bias=MANY))),
        ("num_prompt_logprobs", request_of(num_prompt_logprobs=21)),
        ("min_tokens", request_of(stop=pb.StopConditions(max_tokens=3, min_tokens=4))),
        ("stop_token_ids", request_of(stop=pb.StopConditions(token_ids=range(257)))),
        ("max_tokens", request_of(stop=pb.StopConditions(max_tokens=0))),
        ("stop", request_of(stop=pb.StopConditions(strings=[""]))),
        ("stop", request_of(stop=pb.StopConditions(strings=["x" * 257]))),
        ("stop", request_of(stop=pb.StopConditions(strings=["x"] * 17))),
        ("ttft_ms", request_of(service_level=pb.ServiceLevel(ttft_ms=0))),
        ("tpot_ms", request_of(service_level=pb.ServiceLevel(tpot_ms=float("nan")))),
        *(
            (field, request_of(service_level=pb.ServiceLevel(**{field: value})))
            for field in ("jct_ms", "tbt_ms")
            for value in (0.0, -1.0, float("nan"), float("inf"))
        ),
    ],
)
def test_an_illegal_value_is_refused_by_the_name_of_its_field(
    field: str, request_: pb.GenerateRequest
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        generate_call(request_)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "sampling",
    [
        pb.SamplingParams(min_p=0, repetition_penalty=1e-6, presence_penalty=-2),
        pb.SamplingParams(min_p=1, repetition_penalty=1e6, frequency_penalty=2),
        pb.SamplingParams(logit_bias=dict.fromkeys(range(1024), -100.0)),
        pb.SamplingParams(logit_bias={0: 100.0}, temperature=100, top_p=1),
    ],
)
def test_the_limits_themselves_are_legal(sampling: pb.SamplingParams) -> None:
    wishes = generate_call(request_of(sampling=sampling)).sampling
    for field, value in sampling.ListFields():
        wished = getattr(wishes, field.name)
        assert wished == (tuple(sorted(value.items())) if field.name == "logit_bias" else value)


def test_a_message_says_what_would_be_legal() -> None:
    with pytest.raises(InvalidRequest, match=r"2.5 is out of range; use -2 to 2 \(0 changes"):
        generate_call(request_of(sampling=pb.SamplingParams(presence_penalty=2.5)))
    with pytest.raises(InvalidRequest, match="use a finite number above 0 "):
        generate_call(request_of(sampling=pb.SamplingParams(repetition_penalty=0)))
    with pytest.raises(InvalidRequest, match="use above 0 to 1"):
        generate_call(request_of(sampling=pb.SamplingParams(top_p=0)))
    with pytest.raises(InvalidRequest, match=r"above max_tokens \(3\); raise that or lower this"):
        generate_call(request_of(stop=pb.StopConditions(max_tokens=3, min_tokens=4)))


def test_logprobs_of_the_prompt_are_spelt_and_come_as_messages_of_their_own() -> None:
    piece = PromptLogprobs(
        first_token_index=1,
        logprobs=array("f", [-0.5, -1.5]),
        top_token_ids=array("I", [7, 8, 9, 7]),
        top_logprobs=array("f", [-0.25, -0.5, -1, -1.25]),
    )
    batch: list[Emission] = [EmitPromptLogprobs(ID, piece), EmitTokens(ID, 0, TOKENS)]
    scored, delta = emissions_to_proto("r", batch, INFO, lambda token_id: f"<{token_id}>")
    assert scored.prompt_logprobs.first_token_index == 1
    found = [
        (entry.logprob, [(top.token_id, top.logprob, top.text) for top in entry.top])
        for entry in scored.prompt_logprobs.logprobs
    ]
    assert found == [
        (-0.5, [(7, -0.25, "<7>"), (8, -0.5, "<8>")]),
        (-1.5, [(9, -1.0, "<9>"), (7, -1.25, "<7>")]),
    ]
    assert delta.delta.token_ids == [1]


def test_a_repeated_call_has_the_same_fingerprint_and_another_one_has_not() -> None:
    first = generate_call(request_of(request_id="a"))
    assert generate_call(request_of(request_id="b")).fingerprint == first.fingerprint
    assert generate_call(request_of(request_id="a", n=2)).fingerprint != first.fingerprint


def token(number: int, index: int = 0, *, logprob: float | None = None) -> EmitTokens:
    logprobs = () if logprob is None else (TokenLogprobs(logprob, ((number, logprob),)),)
    message = TokensEmitted(TaskId("r/0~1"), number, (number,), f"<{number}>", logprobs)
    return EmitTokens(ID, index, message)


def finished(index: int = 0, matched: str | int | None = None) -> EmitFinished:
    return EmitFinished(ID, index, "stop", matched, 2, TIMINGS)


def test_tokens_that_waited_together_go_together() -> None:
    batch: list[Emission] = [token(4), token(5, 1), token(5), token(6), finished()]
    first, second, third = emissions_to_proto(ID, batch, INFO, str)
    assert (first.delta.index, first.delta.first_token_index) == (0, 4)
    assert list(first.delta.token_ids) == [4, 5, 6]
    assert first.delta.text == "<4><5><6>"
    assert (second.delta.index, list(second.delta.token_ids)) == (1, [5])
    assert third.finished.index == 0
    assert all(response.request_id == ID for response in (first, second, third))


def test_logprobs_stay_with_their_tokens() -> None:
    (response,) = emissions_to_proto(
        ID, [token(1, logprob=-1.0), token(2, logprob=-2.0)], INFO, str
    )
    assert [entry.logprob for entry in response.delta.logprobs] == [-1.0, -2.0]
    assert response.delta.logprobs[1].top[0].token_id == 2
    assert response.delta.logprobs[1].top[0].text == "2"


def test_the_end_says_why_how_much_and_how_long() -> None:
    (by_text,) = emissions_to_proto(ID, [finished(matched="STOP")], INFO, str)
    (by_id,) = emissions_to_proto(ID, [finished(matched=0)], INFO, str)
    assert by_text.finished.matched_string == "STOP"
    assert by_id.finished.HasField("matched_token_id")
    assert by_id.finished.finish_reason == pb.FINISH_REASON_STOP
    usage, timings = by_text.finished.usage, by_text.finished.timings
    assert (usage.num_prompt_tokens, usage.num_output_tokens) == (3, 2)
    assert timings.prompt_queue_ms == pytest.approx(100)
    assert timings.total_ms == pytest.approx(300)
    assert not timings.HasField("tpot_ms")
    assert (timings.num_preemptions, timings.num_migrations) == (1, 2)


def test_a_caller_who_joins_events_gets_what_waited_together_as_one_message() -> None:
    batch: list[Emission] = [token(4), token(5, 1), token(5), finished(), finished(1)]
    (response,) = emissions_to_proto(ID, batch, INFO, str, joins=True)
    assert list(response.delta.token_ids) == [4, 5]
    second, third, fourth = response.following
    assert (second.delta.index, list(second.delta.token_ids)) == (1, [5])
    assert (third.finished.index, fourth.finished.index) == (0, 1)
    assert response.request_id == ID
    apart = emissions_to_proto(ID, batch, INFO, str)
    assert [event for each in apart for event in events_from(each)] == list(events_from(response))
    assert emissions_to_proto(ID, [], INFO, str, joins=True) == []


def test_how_a_caller_reads_is_no_part_of_the_question() -> None:
    """Else a client that was updated could not attach to what it began."""
    request = request_of(request_id="a", joins_events=True)
    call = generate_call(request)
    assert call.joins_events
    assert call.fingerprint == generate_call(request_of(request_id="a")).fingerprint
    assert request.joins_events
