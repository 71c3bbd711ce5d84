"""The public service over real gRPC: callers who are slow, leave, or come twice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from engine.bundled import bundled_model_path
from engine.config_json import GenerationDefaults
from router.events import (
    CallerLeft,
    EmitFailed,
    EmitFinished,
    EmitTokens,
    PhaseTimings,
    RequestArrived,
    RequestSpec,
)
from router.served_model import ServedModel, load_served_model
from router.service_testing import ID, ServiceDesk, serving
from router.testing import GoneCaller
from scheduling.errors import DeadlineExceeded, QueueFull
from scheduling.ids import TaskId
from scheduling.messages import TokensEmitted
from scheduling.sampling import SamplingParams
from tandemserve.api.v1 import inference_pb2 as pb
from tandemserve.api.v1 import inference_pb2_grpc

PATIENCE_S = 20.0
TIMINGS = PhaseTimings(0, 0, 0, 0, 0, 0, None, 0, 0, 0, "", "", "", False, 0, 0)


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return load_served_model(bundled_model_path(), "demo", max_chars=10_000)


class Desk(ServiceDesk):
    """With calls of the request ID."""

    @property
    def stub(self) -> Any:
        return inference_pb2_grpc.InferenceServiceStub(self.channel)

    def call(self, **fields: Any) -> Any:
        request: dict[str, Any] = {"request_id": ID, "tokens": pb.TokenPrompt(ids=[5, 6])} | fields
        return self.stub.Generate(pb.GenerateRequest(**request))


@asynccontextmanager
async def desk_of(model: ServedModel) -> AsyncIterator[Desk]:
    desk = Desk()
    async with serving(desk, model):
        yield desk


def token(number: int, text: str = "x") -> EmitTokens:
    return EmitTokens(ID, 0, TokensEmitted(TaskId("r/0~1"), number, (number,), text))


def resume_of(*token_ids: int) -> pb.Resume:
    return pb.Resume(choices=[pb.ResumedChoice(token_ids=token_ids)], seed=77, max_tokens=9)


async def next_of(call: Any) -> Any:
    return await asyncio.wait_for(call.read(), PATIENCE_S)


async def code_of(call: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = await asyncio.wait_for(call.code(), PATIENCE_S)
    return code


async def test_a_caller_who_leaves_ends_the_request(model: ServedModel) -> None:
    async with desk_of(model) as desk:
        call = desk.call()
        assert (await next_of(call)).accepted.num_prompt_tokens == 2
        call.cancel()
        await desk.told(CallerLeft(ID))


async def test_a_slow_caller_who_leaves_ends_the_request_as_well(model: ServedModel) -> None:
    """The server waits for room in the connection then, not for tokens."""
    async with desk_of(model) as desk:
        call = desk.call()
        await next_of(call)
        for number in range(200):
            desk.stream().append(token(number, "x" * 4096))
            await asyncio.sleep(0)
        call.cancel()
        await desk.told(CallerLeft(ID))


async def test_a_second_call_takes_the_answer_over_and_the_request_goes_on(
    model: ServedModel,
) -> None:
    async with desk_of(model) as desk:
        first = desk.call(sampling=pb.SamplingParams(seed=1))
        await next_of(first)
        desk.stream().append(token(0))
        await next_of(first)
        second = desk.call(sampling=pb.SamplingParams(seed=1))
        assert (await next_of(second)).accepted.attached
        assert list((await next_of(second)).delta.token_ids) == [0]
        assert await code_of(first) is grpc.StatusCode.CANCELLED
        assert CallerLeft(ID) not in desk.events
        desk.stream().append(EmitFinished(ID, 0, "stop", None, 1, TIMINGS))
        assert (await next_of(second)).HasField("finished")
        assert await code_of(second) is grpc.StatusCode.OK
        assert [type(event) for event in desk.events] == [RequestArrived]


async def test_an_end_that_nobody_is_there_to_hear_of_is_no_error_of_ours(
    model: ServedModel,
) -> None:
    """gRPC raises into a handler that wants to end a call which is over."""
    async with desk_of(model) as desk:
        request = pb.GenerateRequest(request_id=ID, tokens=pb.TokenPrompt(ids=[5, 6]))
        caller = GoneCaller(request.SerializeToString())
        taken_over = desk.service.Generate(None, caller)
        await anext(taken_over)
        desk.stream().take_over()
        with pytest.raises(asyncio.CancelledError):
            await anext(taken_over)
        failed = desk.service.Generate(None, caller)
        await anext(failed)
        desk.stream().fail(EmitFailed(ID, DeadlineExceeded("late"), gpu_work_spent=True))
        with pytest.raises(asyncio.CancelledError):
            await anext(failed)
        odd = GoneCaller(pb.GenerateRequest(request_id="?").SerializeToString())
        refused = desk.service.Generate(None, odd)
        with pytest.raises(asyncio.CancelledError):
            await anext(refused)


async def test_what_is_ready_together_is_one_message_for_a_caller_who_joins_events(
    model: ServedModel,
) -> None:
    async with desk_of(model) as desk:
        first = desk.call(joins_events=True)
        begun = await next_of(first)
        assert begun.HasField("accepted"), "it does not wait for a token for long"
        desk.stream().append(token(0))
        desk.stream().append(token(1))
        desk.stream().append(EmitFinished(ID, 0, "stop", None, 2, TIMINGS))
        ended = await next_of(first)
        assert list(ended.delta.token_ids) == [0, 1]
        assert [each.WhichOneof("event") for each in ended.following] == ["finished"]
        assert await code_of(first) is grpc.StatusCode.OK
        replayed = await next_of(desk.call(joins_events=True))
        assert replayed.accepted.attached
        kinds = [each.WhichOneof("event") for each in replayed.following]
        assert kinds == ["delta", "finished"]


async def test_who_takes_a_call_over_sends_the_other_its_first_message(model: ServedModel) -> None:
    async with desk_of(model) as desk:
        request = pb.GenerateRequest(
            request_id=ID, tokens=pb.TokenPrompt(ids=[5, 6]), joins_events=True
        )
        responses = desk.service.Generate(None, GoneCaller(request.SerializeToString()))
        opening = asyncio.create_task(anext(responses))
        await desk.told()
        desk.stream().append(token(0))
        desk.stream().take_over()
        assert (await asyncio.wait_for(opening, PATIENCE_S)).HasField("accepted")
        with pytest.raises(asyncio.CancelledError):
            await anext(responses)


async def test_who_wants_all_of_an_answer_that_was_read_too_far_is_told_where_it_begins(
    model: ServedModel,
) -> None:
    async with desk_of(model) as desk:
        first = desk.call()
        await next_of(first)
        desk.stream().max_bytes = 8 * 1024  # ten tokens
        for number in range(21):
            desk.stream().append(token(number))
            assert list((await next_of(first)).delta.token_ids) == [number]
        refused = desk.call()
        assert await code_of(refused) is grpc.StatusCode.OUT_OF_RANGE
        assert "kept are answer 0 from token 10 on; send the" in await refused.details()
        assert desk.events[1:] == [], "the answer goes on for who reads it"
        # Who tells what it has gets the rest; from before what is kept, it is computed anew.
        resumed = desk.call(resume=resume_of(*range(15)))
        assert (await next_of(resumed)).accepted.attached
        assert list((await next_of(resumed)).delta.token_ids) == [15, 16, 17, 18, 19, 20]
        assert not (await next_of(desk.call(resume=resume_of(0)))).accepted.attached
        assert [type(event) for event in desk.events[1:]] == [CallerLeft, RequestArrived]


async def test_the_same_id_with_other_content_is_refused(model: ServedModel) -> None:
    async with desk_of(model) as desk:
        first = desk.call()
        await next_of(first)
        assert await code_of(desk.call(n=2)) is grpc.StatusCode.ALREADY_EXISTS
        assert desk.streams.running() == [desk.stream()]


async def test_a_failure_ends_the_call_with_its_status(model: ServedModel) -> None:
    async with desk_of(model) as desk:
        call = desk.call()
        await next_of(call)
        desk.stream().fail(EmitFailed(ID, DeadlineExceeded("late"), gpu_work_spent=True))
        assert await code_of(call) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert CallerLeft(ID) not in desk.events


async def test_a_refused_request_leaves_nothing_and_may_be_sent_again(model: ServedModel) -> None:
    async with desk_of(model) as desk:
        desk.refusal = QueueFull("full", retry_after_s=1.0)
        assert await code_of(desk.call()) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert desk.streams.get(ID) is None
        desk.refusal = None
        assert (await next_of(desk.call())).HasField("accepted")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"model": "other"}, grpc.StatusCode.NOT_FOUND),
        ({"tokens": pb.TokenPrompt(ids=[10**6])}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"stop": pb.StopConditions(max_tokens=10**6)}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"tokens": pb.TokenPrompt(ids=[5] * 100_000)}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"resume": resume_of(10**6)}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_bad_input_is_refused_before_anything_begins(
    model: ServedModel, fields: dict[str, Any], code: grpc.StatusCode
) -> None:
    async with desk_of(model) as desk:
        assert await code_of(desk.call(**fields)) is code
        assert desk.events == []
        assert desk.streams.get(ID) is None


async def test_a_lost_answer_goes_on_with_the_seed_and_limit_it_had(model: ServedModel) -> None:
    async with desk_of(model) as desk:
        call = desk.call(resume=resume_of(8, 9))
        accepted = (await next_of(call)).accepted
        assert (accepted.attached, accepted.seed, accepted.max_tokens) == (False, 77, 9)
        (arrived,) = desk.events
        assert isinstance(arrived, RequestArrived)
        spec = arrived.spec
        assert (spec.resumed, spec.sampling.seed, spec.stop.max_tokens) == (((8, 9),), 77, 9)


async def test_a_resumed_request_that_still_runs_here_is_attached_to_not_begun_again(
    model: ServedModel,
) -> None:
    async with desk_of(model) as desk:
        first = desk.call()
        await next_of(first)
        for number in range(3):
            desk.stream().append(token(number))
        second = desk.call(resume=resume_of(0, 1))
        assert (await next_of(second)).accepted.attached
        delta = (await next_of(second)).delta
        assert (delta.first_token_index, list(delta.token_ids)) == (2, [2])
        assert [type(event) for event in desk.events] == [RequestArrived]


async def test_a_caller_without_the_beginning_of_a_resumed_answer_starts_over(
    model: ServedModel,
) -> None:
    """This router never had the text of the first tokens."""
    async with desk_of(model) as desk:
        first = desk.call(resume=resume_of(8, 9))
        await next_of(first)
        second = desk.call()
        assert not (await next_of(second)).accepted.attached
        assert [type(event) for event in desk.events] == [
            RequestArrived,
            CallerLeft,
            RequestArrived,
        ]


async def spec_asked_for(desk: Desk, call: Any) -> RequestSpec:
    """What the core is told of a call."""
    await next_of(call)
    (event,) = (event for event in desk.events if isinstance(event, RequestArrived))
    call.cancel()
    return event.spec


async def test_the_models_own_defaults_hold_where_the_caller_says_nothing(
    model: ServedModel,
) -> None:
    own = GenerationDefaults(0.5, 7, 0.75, min_p=0.25, repetition_penalty=1.5)
    async with desk_of(replace(model, defaults=own)) as desk:
        spec = await spec_asked_for(desk, desk.call(sampling=pb.SamplingParams(seed=3)))
        assert spec.sampling == SamplingParams(
            temperature=0.5, top_k=7, top_p=0.75, seed=3, min_p=0.25, repetition_penalty=1.5
        )
        info = await desk.stub.GetModelInfo(pb.GetModelInfoRequest())
    assert info.default_sampling == pb.SamplingParams(
        temperature=0.5, top_k=7, top_p=0.75, min_p=0.25, repetition_penalty=1.5
    )


async def test_no_request_is_called_possible_that_the_model_does_not_take(model: Any) -> None:
    async with desk_of(replace(model, context_length=40)) as desk:
        assert (await desk.stub.GetModelInfo(pb.GetModelInfoRequest())).max_request_tokens == 40


async def test_what_the_caller_says_counts_even_where_it_changes_nothing(
    model: ServedModel,
) -> None:
    own = GenerationDefaults(0.5, 7, 0.75, min_p=0.25, repetition_penalty=1.5)
    nothing = pb.SamplingParams(
        temperature=1, top_k=0, top_p=1, min_p=0, repetition_penalty=1, seed=0
    )
    async with desk_of(replace(model, defaults=own)) as desk:
        spec = await spec_asked_for(desk, desk.call(sampling=nothing))
    assert spec.sampling == SamplingParams()


async def test_min_tokens_bans_what_ends_the_answer_and_raises_the_default_limit(
    model: ServedModel,
) -> None:
    (end_id,) = model.config.eos_token_ids
    stop = pb.StopConditions(min_tokens=300, token_ids=[9, end_id])
    async with desk_of(model) as desk:
        spec = await spec_asked_for(desk, desk.call(stop=stop))
    assert (spec.sampling.min_tokens, spec.sampling.end_token_ids) == (300, (end_id, 9))
    assert spec.stop.stop_token_ids == (end_id, 9)
    assert spec.stop.max_tokens == 300
    async with desk_of(model) as desk:
        stop = pb.StopConditions(min_tokens=3, max_tokens=5, token_ids=[9], ignore_eos=True)
        spec = await spec_asked_for(desk, desk.call(stop=stop))
    assert (spec.sampling.end_token_ids, spec.stop.max_tokens) == ((9,), 5)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"sampling": pb.SamplingParams(logit_bias={2048: 1})}, "id 2048 .* use 0 to 2047"),
        ({"stop": pb.StopConditions(token_ids=[2048])}, "id 2048 .* use 0 to 2047"),
        ({"stop": pb.StopConditions(min_tokens=5000)}, "ask for at most 2046 tokens"),
    ],
)
async def test_what_the_model_does_not_have_is_refused(
    model: ServedModel, fields: dict[str, Any], problem: str
) -> None:
    async with desk_of(model) as desk:
        with pytest.raises(grpc.aio.AioRpcError, match=problem):
            await next_of(desk.call(**fields))
        assert desk.events == []
