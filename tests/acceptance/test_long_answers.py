"""Answers larger than what a router keeps of one: a real router process, fake workers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import pytest_asyncio

from deploy.local.router_with_fakes_testing import RouterWithFakes as Place
from deploy.local.router_with_fakes_testing import router_with_fakes
from scheduling.ids import WorkerId
from tandemserve import AsyncClient, BeginningForgotten, Delta, ReaderTooSlow
from tandemserve.api.v1 import inference_pb2 as pb
from worker.testing import FakeWorker

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

# Longer than anything here takes; reached only when something hangs.
PATIENCE_S = 240.0
MIB = 1024 * 1024
# Tokens say a thousand characters each, so that many of them are more than is kept.
TEXT, MAX_STREAM_MIB, MORE_THAN_KEPT = "x" * 1000, 4, 2000
# Long before one of so many reaches its own limit, they reach that of all together.
MAX_ALL_STREAMS_MIB, NUM_READERS = 16, 40
Until = Callable[..., Awaitable[float]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    names = ("prefill-0", "decode-0")
    workers = (FakeWorker(WorkerId(name), TEXT, tokens_per_turn=32) for name in names)
    async with router_with_fakes(
        tmp_path_factory.mktemp("answers"),
        *workers,
        context_length=1_000_000,
        max_stream_mib=str(MAX_STREAM_MIB),
        max_all_streams_mib=str(MAX_ALL_STREAMS_MIB),
    ) as there:
        # Whatever the first request makes it load is not what answers take.
        assert await num_tokens_of(there.stub.Generate(request_of(1))) == 1
        yield there


def request_of(max_tokens: int, **fields: Any) -> pb.GenerateRequest:
    stop = pb.StopConditions(max_tokens=max_tokens, ignore_eos=True)
    return pb.GenerateRequest(tokens=pb.TokenPrompt(ids=[5, 6]), stop=stop, **fields)


@contextmanager
def held_answers(place: Place) -> Iterator[None]:
    """No answer gets a token meanwhile: nobody loses his for want of reading it."""
    _, decode = place.workers
    decode.holds_answers = True
    yield
    decode.let_go()


async def next_of(call: Any) -> Any:
    return await asyncio.wait_for(call.read(), PATIENCE_S)


async def num_tokens_of(call: Any) -> int:
    """Read to the end."""
    total = 0
    while (response := await next_of(call)) is not grpc.aio.EOF:
        total += len(response.delta.token_ids)
    return total


async def add_tokens_of(call: Any, ids: list[int]) -> None:
    """Read until the call ends, with whatever comes before an error."""
    while (response := await next_of(call)) is not grpc.aio.EOF:
        ids += response.delta.token_ids


async def test_a_reader_that_stands_still_loses_its_answer_and_the_router_no_memory(
    place: Place, until: Until
) -> None:
    before = place.num_bytes
    call = place.stub.Generate(request_of(100_000))
    while not (await next_of(call)).HasField("delta"):
        pass
    # Long before the 100 MB of its answer are there.
    await until(place.is_idle)
    kept = place.num_bytes - before
    print(f"{kept / MIB:.1f} MiB for an answer that nobody reads")
    assert kept < 32 * MIB
    async with AsyncClient(place.address) as client:
        assert len((await client.generate([5], max_tokens=9)).token_ids) == 9
    with pytest.raises(grpc.aio.AioRpcError, match="or raise max_stream_mib") as ended:
        await num_tokens_of(call)
    assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_beginning_of_a_long_answer_is_dropped_and_its_reader_may_come_back(
    place: Place,
) -> None:
    ids: list[int] = []

    def call(**fields: Any) -> Any:
        sampling = pb.SamplingParams(seed=1)
        request = request_of(5 * MORE_THAN_KEPT, request_id="long", sampling=sampling, **fields)
        return place.stub.Generate(request)

    async def read(call: Any, num_tokens: int) -> None:
        while len(ids) < num_tokens:
            response = await next_of(call)
            if response.HasField("delta"):
                assert response.delta.first_token_index == len(ids)
                ids.extend(response.delta.token_ids)

    first = call()
    await read(first, MORE_THAN_KEPT)
    refusal = pytest.raises(grpc.aio.AioRpcError, match=r"answer 0 from token [1-9]\d* on")
    with held_answers(place), refusal as refused:
        await num_tokens_of(call())
    assert refused.value.code() is grpc.StatusCode.OUT_OF_RANGE
    await read(first, 2 * MORE_THAN_KEPT)
    with held_answers(place):
        again = call(resume=pb.Resume(choices=[pb.ResumedChoice(token_ids=ids)], seed=1))
        assert (await next_of(again)).accepted.attached
    await read(again, 3 * MORE_THAN_KEPT)
    assert len(ids) + await num_tokens_of(again) == 5 * MORE_THAN_KEPT


async def test_the_sdk_says_that_its_reader_was_too_slow_and_so_does_the_history(
    place: Place, until: Until
) -> None:
    async with AsyncClient(place.address) as client:
        stream = client.stream([5, 6], max_tokens=100_000, ignore_eos=True, request_id="unread")
        await anext(stream)
        await until(place.is_idle)
        with pytest.raises(ReaderTooSlow, match="or raise max_stream_mib of the router") as ended:
            await stream.completion()
        assert (ended.value.code, ended.value.request_id) == ("reader_too_slow", "unread")
        view = (await client.admin.request("unread")).request
        assert (view.state, view.error_code) == ("cancelled", "reader_too_slow")


async def test_the_sdk_says_from_where_an_answer_is_kept_and_its_reader_goes_on(
    place: Place,
) -> None:
    options: dict[str, Any] = {
        "max_tokens": 5 * MORE_THAN_KEPT,
        "ignore_eos": True,
        "request_id": "kept-in-part",
    }
    async with AsyncClient(place.address) as client, AsyncClient(place.address) as other:
        stream, num_read = client.stream([5, 6], **options), 0
        while num_read < MORE_THAN_KEPT:
            event = await anext(stream)
            num_read += len(event.token_ids) if isinstance(event, Delta) else 0
        refusal = pytest.raises(BeginningForgotten, match=r"answer 0 from token [1-9]\d* on")
        with held_answers(place), refusal as ended:
            await other.generate([5, 6], **options)
        assert ended.value.code == "beginning_forgotten"
        assert len((await stream.completion()).token_ids) == 5 * MORE_THAN_KEPT


async def test_a_long_answer_that_is_read_takes_no_more_memory_than_is_kept(place: Place) -> None:
    async with AsyncClient(place.address) as client:
        await client.generate([5], max_tokens=MORE_THAN_KEPT, ignore_eos=True)
        before = place.num_bytes
        answer = await client.generate([5], max_tokens=20 * MORE_THAN_KEPT, ignore_eos=True)
    assert len(answer.text) == 20 * MORE_THAN_KEPT * len(TEXT)
    grown = place.num_bytes - before
    print(f"{grown / MIB:.1f} MiB for an answer of {len(answer.text) / MIB:.0f}")
    assert grown < 20 * MIB


async def test_readers_that_all_stand_still_share_a_bound_and_may_go_on_from_what_they_have(
    place: Place, until: Until
) -> None:
    before, num_tokens = place.num_bytes, 10 * MORE_THAN_KEPT
    sampling = pb.SamplingParams(seed=1)
    requests = [
        request_of(num_tokens, request_id=f"still-{number}", sampling=sampling)
        for number in range(NUM_READERS)
    ]
    received: list[list[int]] = []
    # They all begin before any has more than its first token.
    with held_answers(place):
        calls = [place.stub.Generate(request) for request in requests]
        for call in calls:
            while not (response := await next_of(call)).HasField("delta"):
                pass
            received.append(list(response.delta.token_ids))
    # Nothing is read, so each of them ends.
    await until(place.is_idle)
    kept = place.num_bytes - before
    print(f"{kept / MIB:.1f} MiB for {NUM_READERS} answers that nobody reads")
    # With the messages that connections hold.
    assert kept < 4 * MAX_ALL_STREAMS_MIB * MIB
    problems: list[str] = []
    for ids, call in zip(received, calls, strict=True):
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await add_tokens_of(call, ids)
        assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        problems.append(str(ended.value.details()))
    num_shared = sum("or raise max_all_streams_mib of the router" in each for each in problems)
    print(f"{num_shared} of {NUM_READERS} were ended for the limit of all")
    # The last ones have room for as much as one may have.
    assert num_shared > NUM_READERS / 2
    resume = pb.Resume(choices=[pb.ResumedChoice(token_ids=received[0])], seed=1)
    requests[0].resume.CopyFrom(resume)
    assert await num_tokens_of(place.stub.Generate(requests[0])) == num_tokens - len(received[0])
