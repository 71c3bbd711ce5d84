"""Whole clusters of real processes, and what transformers says about the same weights.

Clusters start in seconds, so each file shares the ones it does not break.
"""

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
import transformers
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.child import ChildProcess
from deploy.local.cluster import LocalCluster
from deploy.local.leak_check import check_for_leaks
from deploy.local.settings import ROOT, ClusterSettings
from engine.bundled import bundled_model_path
from engine.testing import FAMILIES, make_random_model_folder
from runtime.clock import MonotonicClock
from tandemserve import AsyncClient, RequestFilter, WorkerView

SHARED_MEMORY = Path("/dev/shm")
# For whatever happens in an instant on an idle machine: a hang fails, a slow machine does not.
PATIENCE_S = 120.0
_POLL_S = 0.01
# Small chunks and small blocks: prompts of a few dozen tokens cross many borders.
_WORKER = {"num_threads": "1", "block_size": "16", "drain_timeout_s": "2", "lease_ttl_s": "60"}
_PREFILL = {"max_num_batched_tokens": "32", "num_blocks": "512"}
# Nobody is lost who only had to wait for a core, or stands still as long as a test wants it; tests
# of silence choose times of their own.
_ROUTER = {"drain_timeout_s": "5", "heartbeat_timeout_s": "60"}


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every family with random weights, and the model that comes with the repository."""
    folders = {"bundled": bundled_model_path()}
    for seed, family in enumerate(FAMILIES):
        folders[family] = tmp_path_factory.mktemp("models") / family
        make_random_model_folder(folders[family], family, seed)
    return folders


@pytest.fixture(scope="session")
def greedy(
    model_folders: dict[str, Path],
) -> Callable[[str, Sequence[tuple[int, ...]], int], list[tuple[int, ...]]]:
    """The first tokens of transformers' generate, past end tokens: model, prompts, number.

    Prompts of equal length are generated together, without padding.
    """
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    model_by_name: dict[str, Any] = {}
    known: dict[tuple[str, tuple[int, ...], int], tuple[int, ...]] = {}

    def generate(
        name: str, prompts: Sequence[tuple[int, ...]], num_tokens: int
    ) -> list[tuple[int, ...]]:
        if name not in model_by_name:
            model_by_name[name] = transformers.AutoModelForCausalLM.from_pretrained(
                model_folders[name], dtype=torch.float32, attn_implementation="eager"
            )
        missing = {prompt for prompt in prompts if (name, prompt, num_tokens) not in known}
        by_length = sorted(missing, key=len)
        for length, group in groupby(by_length, key=len):
            equal = list(group)
            ids = torch.tensor(equal)
            output = model_by_name[name].generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
            for prompt, tokens in zip(equal, output[:, length:].tolist(), strict=True):
                known[name, prompt, num_tokens] = tuple(tokens)
        return [known[name, prompt, num_tokens] for prompt in prompts]

    return generate


@pytest.fixture(scope="session")
def start_cluster(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., AbstractAsyncContextManager[LocalCluster]]:
    """A cluster for an `async with` block; it must end in order and leave nothing behind."""

    @asynccontextmanager
    async def start(
        model: Path,
        *,
        num_prefill: int = 1,
        num_decode: int = 2,
        num_mixed: int = 0,
        router: dict[str, str] | None = None,
        prefill: dict[str, str] | None = None,
        decode: dict[str, str] | None = None,
    ) -> AsyncIterator[LocalCluster]:
        logs = tmp_path_factory.mktemp("logs")
        settings = ClusterSettings(
            model=model,
            num_prefill=num_prefill,
            num_decode=num_decode,
            num_mixed=num_mixed,
            router=_ROUTER | (router or {}),
            prefill_worker=_WORKER | _PREFILL | (prefill or {}),
            decode_worker=_WORKER | (decode or {}),
            log_dir=logs,
            start_timeout_s=120.0,
        )
        cluster = LocalCluster(settings)
        async with cluster:
            views = await cluster.workers()
            ways = (decode or {}).get("transports", "shared_memory")
            num_ranks = int((decode or {}).get("tensor_parallel_size", "1"))
            num_pools = num_ranks * (num_decode + num_mixed) if "shared_memory" in ways else 0
            assert len(_kv_pools(views)) == num_pools
            yield cluster
            views += await cluster.workers()
            problems = await cluster.stop()
        assert problems == ()
        assert _kv_pools(views) == set()
        told = "\n".join(path.read_text("utf-8") for path in logs.glob("*.log"))
        assert "Traceback" not in told, logs

    return start


@pytest.fixture(scope="session")
def extra_worker() -> Callable[..., AbstractAsyncContextManager[ChildProcess]]:
    """A worker that joins a running cluster: module, model folder, id, other settings."""

    @asynccontextmanager
    async def start(
        cluster: LocalCluster, module: str, model: Path, worker_id: str, **settings: str
    ) -> AsyncIterator[ChildProcess]:
        values = _WORKER | settings | {"model": str(model), "worker_id": worker_id}
        values["redis_url"] = cluster.redis.url
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
        environ = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
        log = cluster.log_folder / f"{worker_id}-extra.log"
        child = ChildProcess(worker_id, (sys.executable, "-P", "-m", module, *flags), environ, log)
        child.start()
        try:
            yield child
            child.terminate()
            assert await child.wait_ended(PATIENCE_S)
            assert child.ended_well, log.read_text("utf-8")
        finally:
            child.kill()

    return start


@pytest.fixture(scope="session")
def until() -> Callable[..., Awaitable[float]]:
    """Ask again until the answer is yes; returns how long that took."""

    async def wait(question: Callable[[], Awaitable[bool]], within_s: float = PATIENCE_S) -> float:
        clock = MonotonicClock()
        began_at_s = clock.now()
        while not await question():
            assert clock.now() - began_at_s < within_s, f"not within {within_s} s"
            await asyncio.sleep(_POLL_S)
        return clock.now() - began_at_s

    return wait


@pytest.fixture(scope="session")
def health_of() -> Callable[[WorkerView, str], Awaitable[int]]:
    """What a worker says of itself or of one of its services, as an orchestrator asks it."""

    async def ask(view: WorkerView, service: str) -> int:
        async with grpc.aio.insecure_channel(view.address) as channel:
            asked = health_pb2.HealthCheckRequest(service=service)
            answer = await health_pb2_grpc.HealthStub(channel).Check(asked, timeout=PATIENCE_S)
            return int(answer.status)

    return ask


@pytest.fixture(scope="session")
def has_pushed_to() -> Callable[..., Awaitable[bool]]:
    """Ask until yes: every decode worker got KV, so the next copy of KV belongs to a request.

    The path to a worker is measured, by copies, before the first push to it.
    """
    rng = random.Random(29)

    async def ask(client: AsyncClient, *decode_workers: str) -> bool:
        prompts = [tuple(rng.choices(range(3, 320), k=20)) for _ in range(8)]
        calls = (client.generate(prompt, max_tokens=8, ignore_eos=True) for prompt in prompts)
        answers = await asyncio.gather(*calls)
        return {answer.timings.decode_worker for answer in answers} >= set(decode_workers)

    return ask


@pytest.fixture(scope="session")
def assert_empty(
    until: Callable[..., Awaitable[float]],
) -> Callable[..., Awaitable[float]]:
    """All blocks of all workers are free and the ledger promises none, soon; returns how soon."""

    async def check(cluster: LocalCluster, within_s: float = PATIENCE_S) -> float:
        clock = MonotonicClock()
        began_at_s = clock.now()
        async with cluster.client() as client:
            leaks = await check_for_leaks(client, within_s)
            assert leaks.is_clean, leaks.line()

            # A caller who left a queue held no blocks: the router may hear of that last.
            async def is_idle() -> bool:
                status, queues = await client.admin.status(), await client.admin.queues()
                busy = (status.num_prefilling, status.num_transferring, status.num_decoding)
                return not any((*busy, queues.num_prompt_tasks, queues.num_generation_tasks))

            await until(is_idle, within_s)
        return clock.now() - began_at_s

    return check


@pytest.fixture(scope="session")
def ended_in_order() -> Callable[[AsyncClient], Awaitable[list[str]]]:
    """Ids of the requests that have ended, as the router saw them end.

    Their callers are processes of the test machine's own pace: who reads first says nothing.
    """

    async def ask(client: AsyncClient) -> list[str]:
        listed = await client.admin.requests(RequestFilter(state="ended"))
        return [view.request_id for view in reversed(listed.requests)]

    return ask


def _kv_pools(views: Sequence[WorkerView]) -> set[Path]:
    """What these lives of workers would leave behind in shared memory."""
    incarnations = {str(view.incarnation) for view in views}
    pools = SHARED_MEMORY.glob("tandem-kv.*") if SHARED_MEMORY.is_dir() else ()
    return {pool for pool in pools if pool.suffix.removeprefix(".") in incarnations}
