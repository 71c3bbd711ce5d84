"""What large texts leave behind in an idle router: nearly nothing, and no work for nobody."""

import asyncio
import json
import os
import random
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
from runtime.clock import MonotonicClock
from runtime.grpc_server import build_channel
from scheduling.ids import WorkerId
from tandemserve.api.v1 import inference_pb2 as pb
from tandemserve.api.v1 import inference_pb2_grpc
from worker.testing import FakeWorker, fake_workers

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

# Longer than anything here takes; reached only when something hangs.
PATIENCE_S = 240.0
MIB = 1024 * 1024
NUM_CHATS = 8
CONTEXT = 50_000_000
Until = Callable[..., Awaitable[float]]


@dataclass
class Place:
    """A router process with one fake worker of each kind."""

    router: ChildProcess
    stub: Any

    @property
    def num_bytes(self) -> int:
        """Memory that the router has in use."""
        return int(psutil.Process(self.router.pid).memory_info().rss)

    @property
    def cpu_s(self) -> float:
        """Processor time that it has had."""
        times = psutil.Process(self.router.pid).cpu_times()
        return float(times.user + times.system)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory, until: Until) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("memory")
    model, log = folder / "long", folder / "router.log"
    shutil.copytree(bundled_model_path(), model)
    config = json.loads((model / "config.json").read_text("utf-8"))
    config["max_position_embeddings"] = CONTEXT
    (model / "config.json").write_text(json.dumps(config), "utf-8")
    workers = tuple(FakeWorker(WorkerId(name)) for name in ("prefill-0", "decode-0"))
    redis = await start_own(make_run_folder())
    async with AsyncExitStack() as stack:
        stack.push_async_callback(redis.stop)
        await stack.enter_async_context(fake_workers(redis.url, "memory", model, *workers))
        port = reserve_port("127.0.0.1", 0)
        stack.callback(port.release)
        settings = {
            "port": str(port.port),
            "model": str(model),
            "redis-url": redis.url,
            "cluster-name": "memory",
            "heartbeat-timeout-s": "60",
            "drain-timeout-s": "2",
        }
        flags = (f"--{name}={value}" for name, value in settings.items())
        environ = dict(os.environ, PYTHONPATH=str(ROOT))
        command = (sys.executable, "-P", "-m", "router", *flags)
        router = ChildProcess("router-0", command, environ, log)
        stack.callback(router.kill)
        router.start()
        channel = await stack.enter_async_context(build_channel(f"127.0.0.1:{port.port}"))
        there = Place(router, inference_pb2_grpc.InferenceServiceStub(channel))
        await until(lambda: _serves(there))
        yield there
        router.terminate()
        assert await router.wait_ended(PATIENCE_S)
        assert router.ended_well
    told = log.read_text("utf-8")
    assert "Traceback" not in told, told[-4000:]


async def _serves(place: Place) -> bool:
    assert place.router.is_running
    return await _code_of(place, pb.GenerateRequest(text="hello")) == "OK"


async def _code_of(place: Place, request: pb.GenerateRequest, timeout_s: float = 60.0) -> str:
    request.stop.max_tokens, request.stop.ignore_eos = 1, True
    try:
        async for _ in place.stub.Generate(request, timeout=timeout_s):
            pass
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


def _chats(num_chars: int) -> list[pb.GenerateRequest]:
    rng = random.Random(7)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(3000)]
    text = " ".join(rng.choices(words, k=num_chars // 2))[:num_chars]
    message = pb.ChatMessage(role="user", content=text)
    return [pb.GenerateRequest(chat=pb.ChatPrompt(messages=[message])) for _ in range(NUM_CHATS)]


async def test_an_idle_router_has_given_back_what_large_texts_took(
    place: Place, until: Until
) -> None:
    before = place.num_bytes
    calls = (_code_of(place, chat, PATIENCE_S) for chat in _chats(1_500_000))
    assert await asyncio.gather(*calls) == ["OK"] * NUM_CHATS
    after = place.num_bytes

    async def is_small() -> bool:
        return place.num_bytes - before < 100 * MIB

    await until(is_small)
    print(f"{(after - before) / MIB:.0f} MiB more at the end of the calls, fewer than 100 later")


async def test_nothing_is_tokenised_for_callers_whose_deadline_has_passed(
    place: Place, until: Until
) -> None:
    """Tokenising all of it would take ten seconds and more of processor time."""
    calls = (_code_of(place, chat, 1.0) for chat in _chats(4_900_000))
    assert set(await asyncio.gather(*calls)) == {"DEADLINE_EXCEEDED"}
    began_s, clock = place.cpu_s, MonotonicClock()
    looked = (clock.now(), began_s)

    async def is_calm() -> bool:
        """After a second in which it had less than a tenth of a core."""
        nonlocal looked
        (at_s, cpu_s), now = looked, (clock.now(), place.cpu_s)
        if now[0] - at_s < 1.0:
            return False
        looked = now
        return now[1] - cpu_s < 0.1

    await until(is_calm)
    print(f"{place.cpu_s - began_s:.2f} s of processor time after the last deadline")
    assert place.cpu_s - began_s < 1.5
    assert await _code_of(place, pb.GenerateRequest(text="hello")) == "OK"
