"""A call that is repeated with its request id, after a broken connection say, by whoever it is."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from deploy.local.cluster import LocalCluster
from deploy.local.testing import extra_router
from tandemserve import AsyncClient, Completion, Delta
from tandemserve.api.v1 import inference_pb2, inference_pb2_grpc

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
Until = Callable[..., Awaitable[float]]

PATIENCE_S = 120.0
PROMPT = [5 + i % 300 for i in range(40)]
# No seed: most callers choose none.
OPTIONS: dict[str, Any] = {
    "temperature": 0.9,
    "n": 2,
    "max_tokens": 12,
    "ignore_eos": True,
    "timeout_s": PATIENCE_S,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    async with start_cluster(model_folders["llama"], num_decode=1) as running:
        yield running


async def told_by(endpoint: str, request_id: str) -> tuple[Completion, bool]:
    """The answer to a client of its own, and whether it was the answer of an earlier call."""
    async with AsyncClient(endpoint, retry_for_s=PATIENCE_S) as client:
        stream = client.stream(PROMPT, request_id=request_id, **OPTIONS)
        answer = await stream.completion()
    assert stream.accepted is not None
    return answer, stream.accepted.attached


async def test_another_client_gets_the_answer_of_the_first_one(cluster: LocalCluster) -> None:
    first, is_attached = await told_by(cluster.endpoint, "again")
    assert not is_attached
    second, is_attached = await told_by(cluster.endpoint, "again")
    assert is_attached
    assert second.choices == first.choices
    assert first.choices[0].token_ids != first.choices[1].token_ids
    other, _ = await told_by(cluster.endpoint, "another")
    assert other.choices != first.choices


async def test_a_caller_who_was_cut_off_gets_the_answer_that_it_had_begun_to_read(
    cluster: LocalCluster,
) -> None:
    options = OPTIONS | {"request_id": "cut-off", "max_tokens": 200}
    async with AsyncClient(cluster.endpoint) as client:
        stream = client.stream(PROMPT, **options)
        begun = await anext(stream)
    # Closed in the middle: the router takes that for a caller who left.
    async with AsyncClient(cluster.endpoint, retry_for_s=PATIENCE_S) as client:
        whole = await client.generate(PROMPT, **options)
    assert isinstance(begun, Delta)
    assert begun.token_ids
    answer = whole.choices[begun.index].token_ids
    assert answer[: len(begun.token_ids)] == begun.token_ids


async def test_another_router_gives_the_same_answer(
    cluster: LocalCluster, model_folders: dict[str, Path], until: Until
) -> None:
    """A client of another make, that sends no `Resume`, begins anew there."""
    expected, _ = await told_by(cluster.endpoint, "moved")
    async with extra_router(cluster, model_folders["llama"], "router-1") as other:
        answer, is_attached = await told_by(other.endpoint, "moved")
    assert not is_attached
    assert answer.seed == expected.seed
    assert [each.token_ids for each in answer.choices] == [
        each.token_ids for each in expected.choices
    ]


async def test_a_client_of_another_make_that_sends_no_seed_is_attached_as_well(
    cluster: LocalCluster,
) -> None:
    request = inference_pb2.GenerateRequest(
        request_id="raw",
        tokens=inference_pb2.TokenPrompt(ids=PROMPT),
        stop=inference_pb2.StopConditions(max_tokens=6, ignore_eos=True),
    )
    seeds, attached = [], []
    for _ in range(2):
        async with grpc.aio.insecure_channel(cluster.endpoint) as channel:
            call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(request)
            async with asyncio.timeout(PATIENCE_S):
                responses = [response async for response in call]
        seeds.append(responses[0].accepted.seed)
        attached.append(responses[0].accepted.attached)
    assert attached == [False, True]
    assert seeds[0] == seeds[1]
