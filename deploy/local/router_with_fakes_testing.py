"""For tests: a router process of its own beside fake workers, with a context of any length.

What it takes in memory and time is the router's alone: workers and clients live in other processes.
"""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil

from deploy.local.child import ChildProcess
from deploy.local.port import reserve_port
from deploy.local.redis import make_run_folder, start_own
from deploy.local.settings import ROOT
from deploy.local.testing import END_TIMEOUT_S, START_TIMEOUT_S
from engine.bundled import bundled_model_path
from runtime.grpc_server import build_channel
from tandemserve import AsyncClient, TandemError
from tandemserve.api.v1 import inference_pb2_grpc
from worker.testing import FakeWorker, fake_workers

_CLUSTER = "fakes"
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class RouterWithFakes:
    """The router, and the workers that it is connected to."""

    address: str
    router: ChildProcess
    workers: tuple[FakeWorker, ...]
    channel: grpc.aio.Channel
    # Of the Inference service.
    stub: Any

    @property
    def num_bytes(self) -> int:
        """Memory that the router has in use."""
        return int(psutil.Process(self.router.pid).memory_info().rss)

    @property
    def cpu_s(self) -> float:
        """Processor time that the router has had."""
        times = psutil.Process(self.router.pid).cpu_times()
        return float(times.user + times.system)

    async def is_idle(self) -> bool:
        """No worker knows a task."""
        return not any(worker.num_tasks for worker in self.workers)


@asynccontextmanager
async def router_with_fakes(
    folder: Path, *workers: FakeWorker, context_length: int, **settings: str
) -> AsyncIterator[RouterWithFakes]:
    """All of them connected; the router must end in order, and its log hold no traceback.

    `settings` are the router's, by the names of their fields; `folder` is for its files.
    """
    model, log = folder / "long", folder / "router.log"
    _copy_model(model, context_length)
    redis = await start_own(make_run_folder())
    async with AsyncExitStack() as stack:
        stack.push_async_callback(redis.stop)
        await stack.enter_async_context(fake_workers(redis.url, _CLUSTER, model, *workers))
        port = reserve_port("127.0.0.1", 0)
        stack.callback(port.release)
        values = {"heartbeat_timeout_s": "60", "drain_timeout_s": "2"} | settings
        values |= {"model": str(model), "redis_url": redis.url, "cluster_name": _CLUSTER}
        router = _router_process(values | {"port": str(port.port)}, log)
        router.start()
        stack.callback(router.kill)
        address = f"127.0.0.1:{port.port}"
        channel = await stack.enter_async_context(build_channel(address))
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        place = RouterWithFakes(address, router, workers, channel, stub)
        async with asyncio.timeout(START_TIMEOUT_S):
            await _connected(place)
        yield place
        router.terminate()
        assert await router.wait_ended(END_TIMEOUT_S), log.read_text("utf-8")
        assert router.ended_well, log.read_text("utf-8")
    told = log.read_text("utf-8")
    assert "Traceback" not in told, told[-4000:]


def _copy_model(folder: Path, context_length: int) -> None:
    """The bundled one with another context: a router reads no weights."""
    shutil.copytree(bundled_model_path(), folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["max_position_embeddings"] = context_length
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def _router_process(values: dict[str, str], log: Path) -> ChildProcess:
    flags = (f"--{name.replace('_', '-')}={value}" for name, value in values.items())
    environ = dict(os.environ, PYTHONPATH=str(ROOT))  # noqa: TID251  children inherit it
    command = (sys.executable, "-P", "-m", "router", *flags)
    return ChildProcess("router-0", command, environ, log)


async def _connected(place: RouterWithFakes) -> None:
    async with AsyncClient(place.address, max_retries=0) as client:
        while not await _all_are_ready(client, len(place.workers)):
            assert place.router.is_running, place.router.ending()
            await asyncio.sleep(_POLL_S)


async def _all_are_ready(client: AsyncClient, num_workers: int) -> bool:
    try:
        views = await client.admin.workers()
    except TandemError:
        return False
    return [view.state for view in views] == ["ready"] * num_workers
