"""What large prompts take of a router: bounded, for as long as they are needed, no longer."""

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from engine.bundled import bundled_model_path
from router.events import CallerLeft, EmitFinished, PhaseTimings
from router.inference import SERVICE_NAME
from router.prompt_room import MEMORY_PER_BYTE, PromptRoom
from router.served_model import ServedModel, load_served_model
from router.service_testing import ID, ServiceDesk, serving
from router.testing import DECODE, CoreUnderTest, spec_of, through_prefill, tokens
from scheduling.ids import RequestId
from scheduling.messages import TaskReleased
from tandemserve.api.v1 import inference_pb2 as pb

PATIENCE_S = 60.0
CONTEXT = 100_000
TIMINGS = PhaseTimings(0, 0, 0, 0, 0, 0, None, 0, 0, 0, "", "", "", False, 0, 0)


@pytest.fixture(scope="module")
def model() -> ServedModel:
    loaded = load_served_model(bundled_model_path(), "demo", max_chars=10_000)
    return replace(loaded, context_length=CONTEXT)


class Desk(ServiceDesk):
    """With calls that only large prompts need."""

    def send(self, message: bytes) -> Any:
        generate = self.channel.unary_stream(
            f"/{SERVICE_NAME}/Generate", response_deserializer=pb.GenerateResponse.FromString
        )
        return generate(message)

    def call(self, request_id: str, num_tokens: int) -> Any:
        tokens = pb.TokenPrompt(ids=[5] * num_tokens)
        sampling = pb.SamplingParams(seed=1)
        request = pb.GenerateRequest(request_id=request_id, tokens=tokens, sampling=sampling)
        return self.send(request.SerializeToString())


@asynccontextmanager
async def desk_of(model: ServedModel, room: PromptRoom) -> AsyncIterator[Desk]:
    desk = Desk()
    async with serving(desk, model, room):
        yield desk


async def accepted_of(call: Any) -> pb.RequestAccepted:
    response: Any = await asyncio.wait_for(call.read(), PATIENCE_S)
    assert response.HasField("accepted")
    accepted: pb.RequestAccepted = response.accepted
    return accepted


async def code_of(call: Any) -> str:
    code: grpc.StatusCode = await asyncio.wait_for(call.code(), PATIENCE_S)
    return code.name


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def test_a_prompt_has_room_until_its_answer_is_over_and_no_longer(
    model: ServedModel,
) -> None:
    room = PromptRoom(max_mib=1)
    async with desk_of(model, room) as desk:
        call = desk.call(ID, 50_000)
        await accepted_of(call)
        assert 0 <= room.num_bytes - MEMORY_PER_BYTE * 50_000 < MEMORY_PER_BYTE * 100
        refused = desk.call("other", 50_000)
        assert await code_of(refused) == "RESOURCE_EXHAUSTED"
        assert "large prompts fill the 1 MiB" in await refused.details()
        await accepted_of(desk.call("short", 2))
        # The answer is there; that nobody reads it keeps no prompt out.
        desk.stream().append(EmitFinished(ID, 0, "stop", None, 1, TIMINGS))
        assert room.num_bytes == 0
        again = desk.call("again", 50_000)
        await accepted_of(again)
        assert room.num_bytes > 0
        again.cancel()
        await desk.told(CallerLeft(RequestId("again")))
        assert room.num_bytes == 0


async def test_a_call_that_takes_over_keeps_the_room_of_the_one_that_began(
    model: ServedModel,
) -> None:
    room = PromptRoom(max_mib=2)
    async with desk_of(model, room) as desk:
        first = desk.call(ID, 50_000)
        await accepted_of(first)
        held = room.num_bytes
        second = desk.call(ID, 50_000)
        assert (await accepted_of(second)).attached
        assert await code_of(first) == "CANCELLED"
        assert room.num_bytes == held
        second.cancel()
        await desk.told(CallerLeft(ID))
        assert room.num_bytes == 0


async def test_an_answer_that_nobody_finds_counts_until_its_reader_has_left(
    model: ServedModel,
) -> None:
    async with desk_of(model, PromptRoom()) as desk:
        call = desk.call(ID, 5)
        await accepted_of(call)
        desk.stream().append(EmitFinished(ID, 0, "stop", None, 1, TIMINGS))
        desk.streams.discard(ID)
        assert desk.streams.memory.num_bytes > 0
        async with asyncio.timeout(PATIENCE_S):
            while await call.read() is not grpc.aio.EOF:
                pass
        assert desk.streams.memory.num_bytes == 0


@pytest.mark.parametrize(
    ("num_tokens", "code"), [(2_000_000, "FAILED_PRECONDITION"), (1_000_000, "INVALID_ARGUMENT")]
)
async def test_refused_prompts_leave_nothing_for_the_collector(
    model: ServedModel, num_tokens: int, code: str
) -> None:
    """It comes after so many objects; a refusal makes few, however large they are."""
    room = PromptRoom(max_mib=16)
    async with desk_of(model, room) as desk:
        assert await code_of(desk.call("warm", num_tokens)) == code
        with no_collector():
            tracemalloc.start()
            try:
                for number in range(20):
                    assert await code_of(desk.call(f"r-{number}", num_tokens)) == code
                kept, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert room.num_bytes == 0
        # The last one may be on its way out.
        assert kept < 3 * num_tokens


async def test_bytes_that_are_no_request_are_refused_as_such(model: ServedModel) -> None:
    async with desk_of(model, PromptRoom()) as desk:
        call = desk.send(b"\xff\xff")
        assert await code_of(call) == "INVALID_ARGUMENT"
        assert "request: is no message of" in await call.details()


@pytest.mark.parametrize("ends_well", [True, False])
def test_the_prompt_of_a_request_that_is_over_is_free_at_once(ends_well: bool) -> None:
    core, prompt = CoreUnderTest(), tuple(range(6))
    with no_collector():
        before = sys.getrefcount(prompt)
        core.ask(replace(spec_of(), prompt_token_ids=prompt))
        task = through_prefill(core)
        if ends_well:
            core.report(DECODE, tokens(task, 1, 12, finish="stop"), TaskReleased(task))
        else:
            core.tell(CallerLeft(ID))
            core.report(DECODE, TaskReleased(task))
        # What the test has kept of the commands to workers.
        core.actions.clear()
        assert sys.getrefcount(prompt) == before
