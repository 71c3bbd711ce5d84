"""Real workers whose log has no room: they serve, end in order, and fail to start with a status."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from deploy.local.child import ChildProcess
from deploy.local.cluster import LocalCluster
from deploy.local.settings import ROOT
from runtime.testing import end_now

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
Until = Callable[..., Awaitable[float]]

# Longer than anything here takes; reached only when something hangs.
PATIENCE_S = 120.0
NO_ROOM = Path("/dev/full")


@asynccontextmanager
async def worker_without_logs(
    cluster: LocalCluster, role: str, model: Path
) -> AsyncIterator[ChildProcess]:
    """A worker named full-prefill or full-decode, whose every line of output fails."""
    values = {
        "model": model,
        "worker_id": f"full-{role}",
        "redis_url": cluster.redis.url,
        "num_threads": 1,
        "block_size": 16,
        "num_blocks": 512,
        "drain_timeout_s": 2,
    }
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    environ = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    command = (sys.executable, "-P", "-m", f"{role}_worker", *flags)
    child = ChildProcess(f"full-{role}", command, environ, NO_ROOM)
    child.start()
    try:
        yield child
    finally:
        child.kill()


async def test_workers_that_cannot_log_serve_and_end_in_order(
    start_cluster: StartCluster, model_folders: dict[str, Path], until: Until
) -> None:
    model = model_folders["llama"]
    async with (
        start_cluster(model, num_decode=1) as cluster,
        cluster.client() as client,
        worker_without_logs(cluster, "prefill", model) as prefill,
        worker_without_logs(cluster, "decode", model) as decode,
    ):

        async def are_ready() -> bool:
            assert prefill.is_running
            assert decode.is_running
            return sum(view.state == "ready" for view in await cluster.workers()) == 4

        await until(are_ready)
        expected = await client.generate([5, 6, 7], max_tokens=20, temperature=0.0)
        for name in ("prefill-0", "decode-0"):
            await client.admin.cordon(name)
        for _ in range(20):
            answer = await client.generate([5, 6, 7], max_tokens=20, temperature=0.0)
            assert answer.token_ids == expected.token_ids
            workers = (answer.timings.prefill_worker, answer.timings.decode_worker)
            assert workers == ("full-prefill", "full-decode")
        for name in ("prefill-0", "decode-0"):
            await client.admin.uncordon(name)
        for child in (prefill, decode):
            child.terminate()
            assert await child.wait_ended(PATIENCE_S)
            assert child.ended_well


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_worker_that_can_neither_start_nor_say_so_ends_with_a_status(
    tmp_path: Path, role: str
) -> None:
    command = (sys.executable, "-P", "-m", f"{role}_worker", f"--model={tmp_path / 'none'}")
    environ = dict(os.environ, PYTHONPATH=str(ROOT))
    no_room = os.open(NO_ROOM, os.O_WRONLY)
    worker = await asyncio.create_subprocess_exec(
        *command, env=environ, stdout=no_room, stderr=no_room
    )
    os.close(no_room)
    try:
        assert await asyncio.wait_for(worker.wait(), PATIENCE_S) == 1
    finally:
        await end_now(worker)
