"""Answers larger than what a router keeps of one: a real router process, fake workers."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
import pytest
import pytest_asyncio

from deploy.local.child import ChildProcess
from deploy.local.port import reserve_port
from deploy.local.redis import make_run_folder, start_own
from deploy.local.settings import ROOT
from engine.bundled import bundled_model_path
from runtime.grpc_server import build_channel
from scheduling.ids import WorkerId
from tandemserve import AsyncClient
from tandemserve.api.v1 import inference_pb2 as pb
from tandemserve.api.v1 import inference_pb2_grpc
from worker.testing import FakeWorker, fake_workers

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

# Longer than anything here takes; reached only when something hangs.
PATIENCE_S = 240.0
MIB = 1024 * 1024
# Tokens say a thousand characters each, so that many of them are more than is kept.
TEXT, MAX_STREAM_MIB, MORE_THAN_KEPT = "x" * 1000, 4, 2000
Until = Callable[..., Awaitable[float]]


@dataclass
class Place:
    """A router process with one fake worker of each kind."""

    address: str
    router: ChildProcess
    workers: tuple[FakeWorker, ...]
    channel: grpc.aio.Channel
    stub: Any

    @property
    def num_bytes(self) -> int:
        """Memory that the router has in use."""
        return int(psutil.Process(self.router.pid).memory_info().rss)

    async def is_idle(self) -> bool:
        """No worker knows a task."""
        return not any(worker.num_tasks for worker in self.workers)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory, until: Until) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("flow")
    model, log = folder / "long", folder / "router.log"
    shutil.copytree(bundled_model_path(), model)
    config = json.loads((model / "config.json").read_text("utf-8"))
    config["max_position_embeddings"] = 1_000_000
    (model / "config.json").write_text(json.dumps(config), "utf-8")
    names = ("prefill-0", "decode-0")
    workers = tuple(FakeWorker(WorkerId(name), TEXT, tokens_per_turn=32) for name in names)
    redis = await start_own(make_run_folder())
    async with AsyncExitStack() as stack:
        stack.push_async_callback(redis.stop)
        await stack.enter_async_context(fake_workers(redis.url, "flow", model, *workers))
        port = reserve_port("127.0.0.1", 0)
        stack.callback(port.release)
        settings = {
            "port": str(port.port),
            "model": str(model),
            "redis-url": redis.url,
            "cluster-name": "flow",
            "max-stream-mib": str(MAX_STREAM_MIB),
            "heartbeat-timeout-s": "60",
            "drain-timeout-s": "2",
        }
        flags = (f"--{name}={value}" for name, value in settings.items())
        environ = dict(os.environ, PYTHONPATH=str(ROOT))
        command = (sys.executable, "-P", "-m", "router", *flags)
        router = ChildProcess("router-0", command, environ, log)
        stack.callback(router.kill)
        router.start()
        address = f"127.0.0.1:{port.port}"
        channel = await stack.enter_async_context(build_channel(address))
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        there = Place(address, router, workers, channel, stub)
        await until(lambda: _serves(there))
        yield there
        router.terminate()
        assert await router.wait_ended(PATIENCE_S)
        assert router.ended_well
    told = log.read_text("utf-8")
    assert "Traceback" not in told, told[-4000:]


async def _serves(place: Place) -> bool:
    assert place.router.is_running
    request = request_of(1)
    try:
        return await num_tokens_of(place.stub.Generate(request)) == 1
    except grpc.aio.AioRpcError:
        return False


def request_of(max_tokens: int, **fields: Any) -> pb.GenerateRequest:
    stop = pb.StopConditions(max_tokens=max_tokens, ignore_eos=True)
    return pb.GenerateRequest(tokens=pb.TokenPrompt(ids=[5, 6]), stop=stop, **fields)


async def next_of(call: Any) -> Any:
    return await asyncio.wait_for(call.read(), PATIENCE_S)


async def num_tokens_of(call: Any) -> int:
    """Read to the end."""
    total = 0
    while (response := await next_of(call)) is not grpc.aio.EOF:
        total += len(response.delta.token_ids)
    return total


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
    with pytest.raises(grpc.aio.AioRpcError, match=r"answer 0 from token [1-9]\d* on") as refused:
        await num_tokens_of(call())
    assert refused.value.code() is grpc.StatusCode.OUT_OF_RANGE
    await read(first, 2 * MORE_THAN_KEPT)
    again = call(resume=pb.Resume(choices=[pb.ResumedChoice(token_ids=ids)], seed=1))
    assert (await next_of(again)).accepted.attached
    await read(again, 3 * MORE_THAN_KEPT)
    assert len(ids) + await num_tokens_of(again) == 5 * MORE_THAN_KEPT


async def test_a_long_answer_that_is_read_takes_no_more_memory_than_is_kept(place: Place) -> None:
    async with AsyncClient(place.address) as client:
        await client.generate([5], max_tokens=MORE_THAN_KEPT, ignore_eos=True)
        before = place.num_bytes
        answer = await client.generate([5], max_tokens=20 * MORE_THAN_KEPT, ignore_eos=True)
    assert len(answer.text) == 20 * MORE_THAN_KEPT * len(TEXT)
    grown = place.num_bytes - before
    print(f"{grown / MIB:.1f} MiB for an answer of {len(answer.text) / MIB:.0f}")
    assert grown < 20 * MIB
