"""Callers who make ids up: thousands of lost answers that nobody began, at a queue that is full."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sized
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from engine.bundled import bundled_model_path
from router.events import Event
from router.inference import InferenceService, add_to_server
from router.served_model import PromptEncoder, ServedModel, load_served_model
from router.state import RouterSettings
from router.streams import StreamBook
from router.testing import CoreUnderTest
from scheduling.goals import Goals
from scheduling.ids import RequestId
from tandemserve.api.v1 import inference_pb2 as pb
from tandemserve.api.v1 import inference_pb2_grpc

PATIENCE_S = 120.0
NUM_CALLS = 3000
MAX_QUEUE = 8


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return load_served_model(bundled_model_path(), "demo", max_chars=10_000)


@asynccontextmanager
async def stub_of(
    model: ServedModel, streams: StreamBook, apply: Callable[[Event], object], core: CoreUnderTest
) -> AsyncIterator[Any]:
    encoder = PromptEncoder(model, num_threads=1)
    goals = {name: Goals(1.0, 0.1) for name in ("interactive", "standard", "batch")}
    service = InferenceService(
        model, encoder, core.core, streams, lambda event: void(apply(event)), goals
    )
    server = grpc.aio.server()
    add_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield inference_pb2_grpc.InferenceServiceStub(channel)
    finally:
        await server.stop(0)
        encoder.close()


def void(_: object) -> None:
    """What the core wants done is looked at by nobody here."""


def lost(request_id: str, **fields: Any) -> pb.GenerateRequest:
    """The call of somebody who claims to have three tokens of an answer."""
    resume = pb.Resume(choices=[pb.ResumedChoice(token_ids=[7, 8, 9])], seed=1, max_tokens=9)
    tokens = pb.TokenPrompt(ids=[5, 6])
    return pb.GenerateRequest(request_id=request_id, tokens=tokens, resume=resume, **fields)


def num_kept(core: CoreUnderTest, streams: StreamBook, ids: list[str]) -> int:
    """Everything that a router keeps by request or by task."""
    state = core.core.state
    tables: tuple[Sized, ...] = (
        state.request_by_id,
        state.sequence_by_task,
        state.stranded,
        state.legs,
    )
    queues: tuple[Sized, ...] = (state.prompt_queue, state.generation_queue, state.ended)
    num_streams = sum(streams.get(RequestId(request_id)) is not None for request_id in ids)
    return sum(len(kept) for kept in (*tables, *queues)) + num_streams


async def test_thousands_of_made_up_ids_at_a_full_queue_are_refused_and_leave_nothing(
    model: ServedModel,
) -> None:
    settings = RouterSettings(max_prompt_queue=MAX_QUEUE)
    # The ledger never answers: some requests wait for it, and the others for those.
    core = CoreUnderTest(settings=settings, answers_reserves=False)
    streams = StreamBook()
    ids = [f"made-up-{number}" for number in range(NUM_CALLS)]
    async with stub_of(model, streams, core.tell, core) as stub, asyncio.timeout(PATIENCE_S):
        fillers: list[Any] = []
        while len(core.core.state.prompt_queue) < MAX_QUEUE:
            fillers.append(stub.Generate(lost(f"filler-{len(fillers)}")))
            # Known to nobody here, so it is computed on from the tokens that were sent along.
            accepted = (await fillers[-1].read()).accepted
            assert not accepted.attached
        before = num_kept(core, streams, ids)
        for request_id in ids:
            refused = stub.Generate(lost(request_id))
            assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "the prompt queue holds 8 tasks" in await refused.details()
        assert num_kept(core, streams, ids) == before
        for filler in fillers:
            filler.cancel()
        while core.core.state.request_by_id:  # noqa: ASYNC110 - gRPC has its turns meanwhile
            await asyncio.sleep(0)
        # What operators may still ask about, and open questions to the ledger: the fillers' alone.
        assert len(core.core.state.ended) == len(fillers)
        assert len(core.core.state.legs) == len(fillers) - MAX_QUEUE
