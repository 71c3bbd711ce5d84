"""One round of chaos, from an empty cluster to an empty cluster."""

import asyncio
import importlib.util
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.chaos.aftermath import (
    check_empty,
    has_used_up_tries,
    history_lines,
    until_whole,
)
from deploy.chaos.caller import PATIENCE_S, call
from deploy.chaos.drawing import HEARTBEAT_TIMEOUT_S, NUM_CLIENTS
from deploy.chaos.oracle import Oracle, RightAnswers
from deploy.chaos.plan import ChaosPlan, Setting
from deploy.chaos.proof import prove_everybody_works
from deploy.chaos.record import Record, Say
from deploy.chaos.strikes import Striker
from deploy.chaos.verdict import num_certain_tokens
from deploy.local.child import ChildProcess
from deploy.local.cluster import LocalCluster
from deploy.local.settings import ClusterSettings
from deploy.local.testing import extra_router
from tandemserve import AsyncClient

# Callers outlast whatever befalls the routers.
_RETRY_FOR_S = 60.0
_ROUTER = {
    "drain_timeout_s": "1",
    "lease_ttl_s": "4",
    "heartbeat_interval_s": "0.25",
    "heartbeat_timeout_s": str(HEARTBEAT_TIMEOUT_S),
}
_WORKER = {
    "num_threads": "1",
    "dtype": "float32",
    "block_size": "16",
    "drain_timeout_s": "0.5",
    # Shorter than the longest freeze.
    "lease_ttl_s": "3",
    "kv_checksum_fraction": "1.0",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a round runs on."""

    cluster: LocalCluster
    children: Mapping[str, ChildProcess]
    # One of each router.
    routers: tuple[AsyncClient, ...]
    callers: tuple[AsyncClient, ...]


async def run_round(plan: ChaosPlan, folder: Path, logs: Path, say: Say) -> Record:
    """Run a plan on a model folder; what went wrong is in the record, and said.

    Raises: StartupError when the cluster does not even start.
    """
    for line in plan.lines():
        say(line)
    record = Record(say)
    right = await asyncio.to_thread(Oracle(folder).answers, plan.asks)
    async with _started(plan.setting, folder, logs, record) as cluster:
        await until_whole(cluster.routers, plan.setting.workers)
        striker = Striker(cluster.cluster, cluster.children, cluster.callers[0], record)
        keeping = asyncio.create_task(striker.keep_alive())
        try:
            await _load(plan, right, cluster, striker, record)
            await _say_what_happened(cluster, record)
            await _prove_healthy(plan, right, cluster, record)
        finally:
            keeping.cancel()
        for line in [line for client in cluster.routers for line in await check_empty(client)]:
            record.add_problem(None, line)
    for path in await asyncio.to_thread(_logs_with_tracebacks, logs):
        record.add_problem(None, f"a traceback in {path}")
    say(record.summary())
    return record


def has_nixl() -> bool:
    """May this machine's workers push KV with NIXL? Looked up only: importing it starts threads."""
    return importlib.util.find_spec("nixl_cu13") is not None


def _logs_with_tracebacks(logs: Path) -> list[Path]:
    paths = sorted(logs.glob("*.log"))
    return [path for path in paths if "Traceback" in path.read_text("utf-8", "replace")]


@asynccontextmanager
async def _started(
    setting: Setting, folder: Path, logs: Path, record: Record
) -> AsyncIterator[Cluster]:
    router = _ROUTER | {
        "policy": setting.policy,
        "max_retries_per_task": str(setting.max_retries_per_task),
    }
    shared = _WORKER | {"transports": setting.transports}
    settings = ClusterSettings(
        model=folder,
        num_prefill=setting.num_prefill,
        num_decode=setting.num_decode,
        router=router,
        prefill_worker=shared
        | {
            "num_blocks": str(setting.num_prefill_blocks),
            "max_num_batched_tokens": str(setting.max_num_batched_tokens),
        },
        decode_worker=shared
        | {
            "role": setting.decode_role,
            "policy": setting.policy,
            "max_num_batched_tokens": str(setting.max_num_batched_tokens),
            "num_blocks": str(setting.num_decode_blocks),
            "preemption": setting.preemption,
            "swap_mib": str(setting.swap_mib),
        },
        log_dir=logs,
        start_timeout_s=PATIENCE_S,
    )
    cluster = LocalCluster(settings)
    async with cluster, AsyncExitStack() as stack:
        name = cluster.model_name
        other = await stack.enter_async_context(
            extra_router(cluster, folder, "router-1", served_model_name=name, **router)
        )
        targets = (cluster.endpoint, other.endpoint)
        routers = [await stack.enter_async_context(_client(target, 0)) for target in targets]
        callers = [
            await stack.enter_async_context(_client(",".join(targets), number))
            for number in range(NUM_CLIENTS)
        ]
        children = {child.name: child for child in cluster.processes} | {"router-1": other.child}
        yield Cluster(cluster, children, tuple(routers), tuple(callers))
        await stack.aclose()
        for problem in await cluster.stop():
            record.add_problem(None, problem)


def _client(targets: str, number: int) -> AsyncClient:
    return AsyncClient(targets, retry_for_s=_RETRY_FOR_S, rng=random.Random(number))


async def _load(
    plan: ChaosPlan,
    right: Sequence[RightAnswers],
    cluster: Cluster,
    striker: Striker,
    record: Record,
) -> None:
    """All requests, and all strikes."""
    asked = list(zip(plan.asks, right, strict=True))
    num_certain = sum(num_certain_tokens(ask, answers) for ask, answers in asked)
    jobs = iter(asked)

    async def is_used_up(request_id: str) -> bool:
        most = plan.setting.max_retries_per_task
        return await has_used_up_tries(cluster.routers, request_id, most)

    async def ask_in_turn() -> None:
        for ask, answers in jobs:
            await call(ask, answers, cluster.callers, record, is_used_up)

    async with asyncio.TaskGroup() as strikes:
        for strike in plan.strikes:
            strikes.create_task(striker.strike(strike, num_certain))
        async with asyncio.TaskGroup() as callers:
            for _ in range(plan.num_at_once):
                callers.create_task(ask_in_turn())
        record.load_ended()


async def _say_what_happened(cluster: Cluster, record: Record) -> None:
    """The histories of requests with problems, as long as routers remember them."""
    request_ids = dict.fromkeys(each.request_id for each in record.problems if each.request_id)
    for request_id in list(request_ids)[:5]:
        for client in cluster.routers:
            for line in await history_lines(client, request_id):
                record.say(line)


async def _prove_healthy(
    plan: ChaosPlan, right: Sequence[RightAnswers], cluster: Cluster, record: Record
) -> None:
    """Everybody is back, empty, and takes part in answers again."""
    for problem in await until_whole(cluster.routers, plan.setting.workers):
        record.add_problem(None, problem)
    for client in cluster.routers:
        for problem in await check_empty(client):
            record.add_problem(None, problem)
    # Only those that surely need a decode worker.
    asked = [
        (ask, answers)
        for ask, answers in zip(plan.asks, right, strict=True)
        if min(len(choice.token_ids) for choice in answers.choices) > 1
    ]
    for client in cluster.routers:
        await prove_everybody_works(client, plan.setting, asked, record)
