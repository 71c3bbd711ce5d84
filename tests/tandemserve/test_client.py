"""Both clients against a real gRPC server: one suite, `connect` chooses."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tandemserve import (
    Accepted,
    ConnectionFailed,
    ContextTooLong,
    Delta,
    Event,
    Finished,
    FinishReason,
    InvalidRequest,
    ProtocolViolation,
    Unauthenticated,
    WorkerFailed,
)
from tandemserve.api.v1 import inference_pb2
from tandemserve.testing import Fail, FakeInferenceServer, accept, answer, finish, say

# Makes the client under test; see conftest.py.
Connect = Callable[..., Any]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def tokens_of(events: list[Event]) -> list[int]:
    return [t for event in events if isinstance(event, Delta) for t in event.token_ids]


# --- the plain path ---------------------------------------------------------------------------


def test_generate_returns_the_whole_answer(connect: Connect, server: FakeInferenceServer) -> None:
    server.scripts.append(answer("hello"))
    completion = connect().generate("Say hello")
    assert completion.text == "hello"
    assert completion.token_ids == tuple(b"hello")
    assert completion.finish_reason is FinishReason.STOP
    assert completion.choices[0].matched_stop == "END"
    assert completion.model == "fake"
    assert completion.seed == 7
    assert completion.usage.num_output_tokens == 5
    assert completion.timings.transport == "shared_memory"
    assert completion.timings.tpot_ms is None
    assert completion.request_id == server.requests[0].request_id  # type: ignore[attr-defined]


def test_stream_yields_deltas_and_then_the_end(
    connect: Connect, server: FakeInferenceServer
) -> None:
    server.scripts.append([accept(seed=9), say(0, [1, 2], "ab"), say(2, [3], ""), finish(3)])
    stream = connect().stream("x", request_id="mine")
    assert stream.request_id == "mine"
    events = list(stream)
    assert events[:2] == [Delta(0, 0, (1, 2), "ab"), Delta(0, 2, (3,), "")]
    assert isinstance(events[2], Finished)
    assert stream.accepted == Accepted(model="fake", num_prompt_tokens=3, attached=False, seed=9)
    assert stream.completion().text == "ab"


def test_every_option_reaches_the_wire(connect: Connect, server: FakeInferenceServer) -> None:
    connect().generate(
        [1, 2, 3],
        max_tokens=4,
        temperature=0.5,
        top_k=5,
        top_p=0.25,
        seed=6,
        stop=["a", "b"],
        stop_token_ids=[7],
        ignore_eos=True,
        n=1,
        logprobs=2,
        ttft_ms=100,
        tpot_ms=20.5,
        jct_ms=3000,
        tbt_ms=80,
        request_class="interactive",
        tenant="t",
        session="s",
        request_id="r",
        model="m",
    )
    assert server.requests == [
        inference_pb2.GenerateRequest(
            request_id="r",
            model="m",
            tokens=inference_pb2.TokenPrompt(ids=[1, 2, 3]),
            sampling=inference_pb2.SamplingParams(temperature=0.5, top_k=5, top_p=0.25, seed=6),
            stop=inference_pb2.StopConditions(
                max_tokens=4, strings=["a", "b"], token_ids=[7], ignore_eos=True
            ),
            n=1,
            num_logprobs=2,
            service_level=inference_pb2.ServiceLevel(
                ttft_ms=100, tpot_ms=20.5, jct_ms=3000, tbt_ms=80
            ),
            request_class=inference_pb2.REQUEST_CLASS_INTERACTIVE,
            tenant="t",
            session="s",
            joins_events=True,
        )
    ]


def test_every_generation_carries_an_id_so_that_it_can_be_repeated(
    connect: Connect, server: FakeInferenceServer
) -> None:
    client = connect()
    client.generate("a")
    client.generate("a")
    first, second = server.requests
    assert isinstance(first, inference_pb2.GenerateRequest)
    assert isinstance(second, inference_pb2.GenerateRequest)
    assert first.request_id != second.request_id
    assert len(first.request_id) == 32


def test_a_call_that_is_repeated_with_its_id_is_the_same_call_whoever_repeats_it(
    connect: Connect, server: FakeInferenceServer
) -> None:
    """A seed drawn here would make it another one, and the router refuse it."""
    for client in (connect(), connect()):
        client.generate("a", request_id="mine", temperature=0.5)
    first, second = server.requests
    assert isinstance(first, inference_pb2.GenerateRequest)
    assert first == second
    assert not first.sampling.HasField("seed")


def test_chat_sends_messages_of_both_forms(connect: Connect, server: FakeInferenceServer) -> None:
    from tandemserve import ChatMessage

    messages = [ChatMessage("system", "be brief"), {"role": "user", "content": "hi"}]
    assert connect().chat(messages).text == "hi"
    request = server.requests[0]
    assert isinstance(request, inference_pb2.GenerateRequest)
    assert [(m.role, m.content) for m in request.chat.messages] == [
        ("system", "be brief"),
        ("user", "hi"),
    ]
    assert text_of(list(connect().stream_chat(messages))) == "hi"


def test_several_answers_are_kept_apart(connect: Connect, server: FakeInferenceServer) -> None:
    server.scripts.append(
        [
            accept(),
            say(0, [1], "a", index=1),
            say(0, [2], "b", index=0),
            say(1, [3], "c", index=1),
            finish(2, index=1),
            finish(1, index=0),
        ]
    )
    completion = connect().generate("x", n=2)
    assert [choice.text for choice in completion.choices] == ["b", "ac"]
    assert completion.usage.num_output_tokens == 3
    assert completion.usage.num_prompt_tokens == 3


def test_queries_return_plain_values(connect: Connect) -> None:
    client = connect()
    assert client.list_models() == ("fake",)
    info = client.model_info()
    assert info.eos_token_ids == (0, 2)
    assert info.default_sampling.temperature == 0.5
    assert info.default_sampling.top_k is None
    assert client.tokenize("AB") == (65, 66)
    assert client.tokenize([{"role": "user", "content": "A"}], model="fake") == (65,)
    assert client.admin.status().router_id == "router-0"
    assert client.admin.workers()[0].num_free_blocks == 60
    assert client.admin.queues(max_tasks=5).generation_tasks[0].task_id == "r1/0"
    assert client.admin.reservations(max_holdings=5).holdings[0].num_blocks == 4


# --- errors -----------------------------------------------------------------------------------


def test_a_typed_error_carries_what_the_server_said(
    connect: Connect, server: FakeInferenceServer
) -> None:
    server.failures.append(
        Fail(
            grpc.StatusCode.INVALID_ARGUMENT,
            "prompt: too long; shorten it",
            code="context_too_long",
            gpu_work_spent=False,
        )
    )
    with pytest.raises(ContextTooLong) as caught:
        connect().generate("x", request_id="r1")
    assert isinstance(caught.value, InvalidRequest)
    assert caught.value.message == "prompt: too long; shorten it"
    assert caught.value.code == "context_too_long"
    assert caught.value.gpu_work_spent is False
    assert caught.value.retryable is False
    assert caught.value.request_id == "r1"
    assert len(server.requests) == 1


def test_an_error_in_the_middle_of_an_answer_is_typed_too(
    connect: Connect, server: FakeInferenceServer, delays: list[float]
) -> None:
    failure = Fail(grpc.StatusCode.INTERNAL, "gave up", code="worker_failed", gpu_work_spent=True)
    server.scripts.append([accept(), say(0, [1], "a"), failure])
    stream = connect().stream("x")
    assert next(stream) == Delta(0, 0, (1,), "a")
    with pytest.raises(WorkerFailed) as caught:
        next(stream)
    assert caught.value.gpu_work_spent is True
    assert delays == []
    with pytest.raises(WorkerFailed):  # and not a silent end
        next(stream)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_tokens": "4"}, "max_tokens must be an integer"),
        ({"max_tokens": True}, "max_tokens must be an integer"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"stop": [1]}, "stop must be a string"),
        ({"stop": 3}, "stop must be a sequence"),
        ({"ignore_eos": 1}, "ignore_eos must be True or False"),
        ({"tenant": 3}, "tenant must be a string"),
        ({"max_token": 3}, "unknown option 'max_token'"),
        ({"timeout_s": "1"}, "timeout_s must be a number"),
    ],
)
def test_wrong_types_raise_type_error(
    connect: Connect, server: FakeInferenceServer, options: dict[str, object], problem: str
) -> None:
    with pytest.raises(TypeError, match=problem):
        connect().generate("x", **options)
    assert server.requests == []


@pytest.mark.parametrize("prompt", [b"bytes", 7, ["a"], [1.5], {"a": 1}, None])
def test_a_prompt_of_a_wrong_type_raises_type_error(connect: Connect, prompt: object) -> None:
    with pytest.raises(TypeError, match="prompt must be"):
        connect().generate(prompt)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_tokens": -1}, "max_tokens: -1 is outside 1 to 4294967295"),
        ({"seed": 2**64}, "seed: 18446744073709551616 is outside"),
        ({"request_class": "urgent"}, "'urgent' is unknown; choose one of interactive"),
        ({"tenant": "\ud800"}, "unpaired surrogates"),
    ],
)
def test_what_no_field_can_hold_is_an_invalid_request(
    connect: Connect, options: dict[str, object], problem: str
) -> None:
    with pytest.raises(InvalidRequest, match=problem) as caught:
        connect().generate("x", **options)
    assert caught.value.gpu_work_spent is False


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_a_timeout_must_be_positive(connect: Connect, timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout must be positive"):
        connect().generate("x", timeout_s=timeout_s)


def test_values_are_judged_by_the_server_alone(
    connect: Connect, server: FakeInferenceServer
) -> None:
    connect().generate("", temperature=float("nan"), max_tokens=0, top_p=-1.0)
    assert len(server.requests) == 1


def test_nobody_at_the_target_is_a_failed_connection(
    connect: Connect, server: FakeInferenceServer, delays: list[float]
) -> None:
    target = server.target
    server.stop()
    with pytest.raises(ConnectionFailed, match=f"{target}.*tandem up") as caught:
        connect(target).list_models()
    assert caught.value.retryable is True
    assert len(delays) > 2
    assert sum(delays) <= 10.0


def test_a_wrong_token_is_named_as_such(connect: Connect) -> None:
    with FakeInferenceServer(token="secret") as guarded:
        with pytest.raises(Unauthenticated, match="pass a valid token"):
            connect(guarded.target).list_models()
        assert connect(guarded.target, token="secret").generate("hi").text == "hi"
        assert guarded.metadata[-1]["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "script",
    [
        [say(0, [1], "a"), finish(1)],
        [accept(), accept(), finish(0)],
        [accept(), say(1, [1], "a"), finish(1)],
        [accept(), say(0, [1], "a"), say(0, [1], "a"), finish(1)],
        [accept(), say(0, [1], "a"), say(2, [1], "a"), finish(1)],
        [accept(), say(0, [1], "a", index=1), finish(1)],
        [accept(), finish(0), say(0, [1], "a")],
        [accept(), finish(0), finish(0)],
        [accept(), say(0, [1], "a")],
        [],
        [inference_pb2.GenerateResponse(request_id="other", accepted=accept().accepted)],
    ],
)
def test_a_stream_that_cannot_be_right_raises_instead_of_yielding(
    connect: Connect, server: FakeInferenceServer, script: list[Any]
) -> None:
    server.scripts.append(script)
    with pytest.raises(ProtocolViolation, match="report this"):
        connect().generate("x")
    assert len(server.requests) == 1


def test_events_of_a_later_version_are_ignored(
    connect: Connect, server: FakeInferenceServer
) -> None:
    unknown = inference_pb2.GenerateResponse()
    server.scripts.append([accept(), unknown, say(0, [1], "a"), finish(1)])
    assert connect().generate("x").text == "a"
